"""Loads an SAE from a local folder or from a release known to sae-lens, and checks that it fits the model.

All checks happen before a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from saerl_lightning import hub
from saerl_lightning.errors import InputError, program
from saerl_lightning.files import read_json
from saerl_lightning.ranges import require_in_range
from saerl_lightning.signals.fingerprint import digest, digest_folder
from saerl_lightning.signals.model import ReadModel
from saerl_lightning.whole_weights import require_finite_weights

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"  # the files of a sae-lens folder
# Architectures of sae-lens that encode each token independently.
BY_TOKEN = {
    "standard",
    "gated",
    "topk",
    "abstopk",
    "jumprelu",
    "matching_pursuit",
}
HOOK = re.compile(r"(?:blocks\.(?P<block>\d+)\.hook_resid_(?P<side>pre|post)|(?:model\.)?layers\.(?P<layer>\d+))$")


@dataclass(frozen=True)
class SAESource:
    """A sparse autoencoder for the residual stream of the model that is read.

    Args:
        path: Folder with `cfg.json` and `sae_weights.safetensors`; with `sae_id`, a sae-lens release or a hub
            repository.
        sae_id: Id of the SAE in its release; null for a local folder.
        check_model: Whether to refuse an SAE that was trained on a model of another name.
    """

    path: str
    sae_id: str | None = None
    check_model: bool = True

    def __post_init__(self) -> None:
        """Refuses arguments of other kinds."""
        require_in_range(self)

    def load(self, model: ReadModel) -> Any:
        """Loads the `sae_lens.SAE` in evaluation mode, on the model's device.

        Raises:
            InputError: if the SAE does not exist, its files are damaged, or it does not fit the model.
        """
        self._refuse_misfit(self._config(), model)
        device, folder, sae_id = str(model.place), Path(self.path), self.sae_id
        sae = _from_folder(folder, device) if sae_id is None else _from_release(self.path, sae_id, device)
        require_finite_weights(sae.state_dict(), f"the SAE at '{self.path}'")
        return sae.eval().requires_grad_(False)

    def _config(self) -> Mapping[str, Any]:
        """Reads the SAE's configuration in sae-lens's current format, without the weights."""
        return _folder_config(Path(self.path)) if self.sae_id is None else _release_config(self.path, self.sae_id)

    def fingerprint(self) -> str:
        """Returns a digest of the SAE's files, or of its release and id.

        Raises:
            InputError: if the folder or one of its files is missing.
        """
        if self.sae_id is not None:
            return digest([self.path, self.sae_id])
        _refuse_missing(Path(self.path))
        return digest_folder(Path(self.path), (Path(CONFIG).suffix, Path(WEIGHTS).suffix))

    def _refuse_misfit(self, config: Mapping[str, Any], model: ReadModel) -> None:
        layer, _, width = model.config()
        known = config.get("metadata", {})
        name, hook = known.get("model_name"), known.get("hook_name")
        if config["architecture"] not in BY_TOKEN:
            raise InputError(
                f"the SAE at '{self.path}' is of the kind '{config['architecture']}', which does not turn each token's "
                f"residual stream into features of its own; take one of the kinds {', '.join(sorted(BY_TOKEN))}"
            )
        expected = hooked_layer(hook) if hook else layer
        if config["d_in"] != width:
            raise InputError(
                f"the SAE at '{self.path}' reads {config['d_in']} numbers a token, but '{model.path}' has a residual "
                f"stream of {width}; take an SAE that was trained on this model"
            )
        if self.check_model and name and short_name(name) != model.name:
            raise InputError(
                f"the SAE at '{self.path}' was trained on '{short_name(name)}', but the model that is read is "
                f"'{model.name}'; if they are the same model, write `check_model: false`"
            )
        if expected != layer:
            raise InputError(
                f"the SAE at '{self.path}' reads layer {expected} ({hook}), but layer {layer} of "
                f"'{model.path}' is read; write `layer: {expected}`"
            )
        if config.get("normalize_activations") == "expected_average_only_in":
            raise InputError(
                f"the SAE at '{self.path}' expects scaled activations, and its scale is not known; "
                f"save it with the scale folded into its weights (fold_activation_norm_scaling_factor)"
            )


def short_name(model: str) -> str:
    """Returns a model's short name: the last part of its path, in lower case."""
    return model.rstrip("/").rsplit("/", 1)[-1].lower()


def hooked_layer(hook: str) -> int:
    """Returns the layer whose output a hook reads.

    Args:
        hook: Hook name of TransformerLens (`blocks.12.hook_resid_post`), or module name (`model.layers.12`).

    Raises:
        InputError: if the hook does not read the residual stream after a layer.
    """
    found = HOOK.match(hook)
    layer = int(found["block"] or found["layer"]) - (found["side"] == "pre") if found else -1
    if layer < 0:
        raise InputError(
            f"the SAE reads '{hook}', but signals are read from the residual stream behind a layer; "
            f"take an SAE of `blocks.<layer>.hook_resid_post`"
        )
    return layer


def _refuse_missing(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(
            f"no SAE folder '{folder}'; write a folder with {CONFIG} and {WEIGHTS} (`{program()} fit -c sae/topk.yaml` "
            f"trains one), or a sae-lens release together with `sae_id`"
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"'{folder / name}' is missing; an SAE folder holds {CONFIG} and {WEIGHTS}")


def _folder_config(folder: Path) -> Mapping[str, Any]:
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
    from safetensors import SafetensorError, safe_open

    _refuse_missing(folder)
    try:
        written = read_json(folder / CONFIG, "the SAE's configuration")
    except InputError as error:
        raise InputError(f"{error}; train or download the SAE again") from error
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as weights:
            list(weights.keys())
    except SafetensorError as error:
        raise InputError(
            f"'{folder / WEIGHTS}' is broken or cut short ({error}); train or download the SAE again"
        ) from error
    with _unbuildable(folder):
        return {"architecture": "standard", **handle_config_defaulting(written)}


def _from_folder(folder: Path, device: str) -> Any:
    from sae_lens import SAE

    with _unbuildable(folder):
        return SAE.load_from_disk(folder, device=device)


@contextmanager
def _unbuildable(folder: Path) -> Iterator[None]:
    """Turns the errors of an unusable SAE folder into an InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"'{folder}' holds no SAE that sae-lens can build: {_short(error)}") from error


def _release_config(release: str, sae_id: str) -> Mapping[str, Any]:
    """Reads only the configuration, so that an unsuitable SAE is refused before gigabytes are downloaded."""
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if release in known:
        _refuse_unknown(f"SAE of release '{release}'", sae_id, known[release].saes_map)
    elif "/" not in release:  # with a slash it may be a repository on the hub
        _refuse_unknown("sae-lens release", release, known)
    with _unloadable(release, sae_id):
        return load_sae_config_from_huggingface(release, sae_id)


def _from_release(release: str, sae_id: str, device: str) -> Any:
    from sae_lens import SAE

    with _unloadable(release, sae_id):
        return SAE.from_pretrained(release, sae_id, device=device)


@contextmanager
def _unloadable(release: str, sae_id: str) -> Iterator[None]:
    """Turns the errors of an unavailable release into an InputError."""
    hub.look_up(release)
    try:
        yield
    except (
        ConnectionError,
        FileNotFoundError,
        # Without a network: ConnectionError. With one, but with nothing in the cache and no answer: FileNotFoundError.
    ) as error:  # no network is to be used; or not in the cache, and no answer
        raise InputError(_unreachable(release, sae_id, error)) from error
    except (OSError, KeyError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"SAE '{sae_id}' of '{release}' can't be loaded: {_short(error)}") from error


def _refuse_unknown(what: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name in names:
        return
    near = get_close_matches(name, names, n=5, cutoff=0.3) or names[:5]
    raise InputError(f"no {what} is called '{name}'; near names: {', '.join(near)}")


def _unreachable(release: str, sae_id: str, error: Exception) -> str:
    return (
        f"SAE '{sae_id}' of '{release}' is not on this machine, and the hub can't be reached (no network, or "
        f"HF_HUB_OFFLINE is set); download it where there is a network, or write a local folder: {_short(error)}"
    )


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
