// Draws the charts in the page's own colours and redraws them when those change. Data comes from the #data block only.
(() => {
  "use strict";
  const { figures, map, colours, nothing } = JSON.parse(document.getElementById("data").textContent);
  const narrow = () => window.innerWidth < 700;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, displayModeBar: false, showTips: false };
  let paper = false; // whether the page is being printed

  const tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const tones = () => (paper ? { ink: "#1d2129", soft: "#5d6470", line: "#e3e0d8", panel: "#ffffff" } :
    Object.fromEntries(["ink", "soft", "line", "panel"].map((name) => [name, tone(name)])));

  // Plotly reads a few HTML tags in labels; the data's own must stay text.
  const text = (raw) => String(raw).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const wrap = (raw, width = 58) => text(raw).split(" ").reduce(([lines, length], word) =>
    length + word.length > width ? [`${lines}<br>${word}`, word.length] : [`${lines} ${word}`, length + word.length + 1],
    ["", 0])[0].trim();

  // Room between an axis's title and its numbers, whatever their width.
  const apart = (axis) => (axis?.title?.text ? { ...axis.title, standoff: 10 } : undefined);

  function dressed(layout) {
    const { ink, soft, line, panel } = tones();
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line, automargin: true, tickfont: { color: soft } };
    const entries = narrow() ? { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } } : { x: 1.01, y: 1, font: { size: 12 } };
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: 13 },
      margin: { l: 8, r: 8, t: 8, b: 8 },
      legend: { ...entries, ...layout.legend, bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { align: "left", bgcolor: panel, bordercolor: line, font: { color: ink, size: 13 } },
      dragmode: narrow() ? false : layout.dragmode ?? "zoom", // a finger scrolls the page
      xaxis: { ...axis, ...layout.xaxis, title: apart(layout.xaxis) },
      yaxis: { ...axis, ...layout.yaxis, title: apart(layout.yaxis) },
    };
  }

  // On a phone many names would take more room than the chart; a tap on a mark says its name.
  const crowded = (traces) => narrow() && traces.length > 8;
  const inked = (trace) => trace.meta === "ink" ? { ...trace, line: { ...trace.line, color: tones().ink } } : trace;

  // The names stand above the chart on a phone, where they would take its rows' room, and beside it elsewhere.
  function withNames(height, traces, shown) {
    const names = traces.filter((trace) => trace.showlegend !== false && trace.type !== "heatmap").length;
    if (!shown || names < 2) return height;
    return narrow() ? height + 19 * names : Math.max(height, 24 + 20 * names);
  }

  function drawCharts() {
    for (const element of document.querySelectorAll("[data-figure]")) {
      const figure = figures[element.dataset.figure];
      const layout = dressed({ ...figure.layout, ...(crowded(figure.data) && { showlegend: false }) });
      layout.height = element.dataset.figure === "difficulty" ? (narrow() ? 420 : 500) : layout.height ?? 380;
      layout.height = withNames(layout.height, figure.data, layout.showlegend !== false);
      element.style.height = `${layout.height}px`; // a box of another height would leave a gap below the chart
      Plotly.react(element, figure.data.map(inked), layout, config);
    }
  }

  // -- the map --------------------------------------------------------------------------------------------------------

  const known = (values) => values.some((value) => value !== null && value !== "" && value !== -1);
  const colourings = map && {
    Cluster: known(map.cluster) && (() => byCategory(map.cluster, map.largest, (c) => map.names[c], "other clusters", "no cluster")),
    Difficulty: known(map.difficulty) && byDifficulty,
    Topic: known(map.topic) && (() => byCategory(map.topic, frequent(map.topic), (topic) => topic, "other topics", "no topic")),
    Fate: () => byCategory(map.fate, frequent(map.fate), (fate) => fate),
  };

  function hover(i) {
    const rating = map.difficulty[i] === null ? "" : ` · difficulty ${map.difficulty[i]}`;
    const cluster = map.cluster[i] < 0 ? "" : ` · cluster ${text(map.names[map.cluster[i]] ?? map.cluster[i])}`;
    const when = map.step[i] > 0 ? `served at step ${map.step[i].toLocaleString("en")}` : text(map.fate[i]);
    return `${wrap(map.text[i])}<br><b>${text(map.topic[i]) || "no topic"}</b>${cluster}${rating}<br>${when} · ${text(map.uid[i])}`;
  }

  const dots = (rows, marker, name) => ({
    type: "scatter", mode: "markers", name, marker: { size: narrow() ? 4 : 6, opacity: 0.8, ...marker },
    x: rows.map((i) => map.x[i]), y: rows.map((i) => map.y[i]), text: rows.map(hover), hoverinfo: "text",
  });

  function frequent(values) {
    const counts = new Map();
    values.filter((value) => value !== "").forEach((value) => counts.set(value, (counts.get(value) ?? 0) + 1));
    return [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, colours.length);
  }

  // A colour for each value that is shown by name, and grey for all others, so that no two have the same.
  function byCategory(values, shown, name, others, none) {
    const place = new Map(shown.map((value, k) => [value, k]));
    const looks = [...shown.map((value, k) => [text(name(value)), { color: colours[k] }]),
      [others, { color: nothing }], [none, { color: nothing, symbol: "circle-open" }]];
    const groups = looks.map(() => []);
    values.forEach((value, i) => groups[place.get(value) ?? shown.length + (value === "" || value === -1)].push(i));
    return groups.map((rows, k) => rows.length ? dots(rows, looks[k][1], looks[k][0]) : null).filter(Boolean);
  }

  function byDifficulty() {
    const rows = map.difficulty.map((value, i) => [value, i]).filter(([value]) => value !== null).map(([, i]) => i);
    const rest = map.difficulty.map((value, i) => [value, i]).filter(([value]) => value === null).map(([, i]) => i);
    const bar = narrow() ? { orientation: "h", thickness: 10, y: -0.12 } : { thickness: 12, outlinewidth: 0 };
    const rated = dots(rows, { color: rows.map((i) => map.difficulty[i]), colorscale: "Viridis", showscale: true, colorbar: { ...bar, title: { text: "difficulty" } } }, "rated");
    return rest.length ? [dots(rest, { color: nothing, symbol: "circle-open" }, "not rated"), rated] : [rated];
  }

  let chosen = map && Object.keys(colourings).find((name) => colourings[name]);

  function drawMap() {
    if (!map) return;
    const axis = { visible: false, fixedrange: narrow(), range: [-1.04, 1.04] };
    const traces = colourings[chosen]();
    const layout = dressed({ xaxis: axis, yaxis: axis, hovermode: "closest", showlegend: traces.length > 1 && !crowded(traces) });
    layout.height = narrow() ? 420 : Math.max(420, Math.min(0.76 * window.innerHeight, 720));
    layout.legend.itemsizing = "constant";
    document.getElementById("map-chart").style.height = `${layout.height}px`;
    Plotly.react("map-chart", traces, layout, config);
  }

  function makeSwitch() {
    const group = document.querySelector(".switch");
    const buttons = Object.keys(colourings).filter((name) => colourings[name]).map((name) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.setAttribute("aria-pressed", String(name === chosen));
      button.addEventListener("click", () => {
        chosen = name;
        buttons.forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
        drawMap();
      });
      return button;
    });
    group.append(...buttons);
  }

  function draw() {
    drawCharts();
    drawMap();
  }

  if (map) makeSwitch();
  draw();
  document.documentElement.dataset.drawn = "yes";
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if ((width < 700) !== narrow()) draw();
    width = window.innerWidth;
  });
  dark.addEventListener("change", draw);
  for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(event, () => { paper = printing; draw(); });
  }
})();
