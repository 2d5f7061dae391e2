"""Operations that plan the training order (filtering, clustering, curriculum, mixing), and the datamodule that serves it."""
