/* Curves of a training: Chart.js where the program was built with it, else a small SVG of our own.
 * Both take the same points and the colours of the style sheet (--c1 .. --c4). */
import { el, number, put } from "./dom.js";

const MAX_POINTS = 600;

/* At most MAX_POINTS of [x, y], the largest and smallest of each stretch kept. */
export function thin(points) {
  if (points.length <= MAX_POINTS) return points;
  const out = [];
  const step = (2 * points.length) / MAX_POINTS;
  for (let a = 0; a < points.length; a += step) {
    const part = points.slice(Math.floor(a), Math.floor(a + step));
    let lo = part[0], hi = part[0];
    for (const p of part) {
      if (p[1] < lo[1]) lo = p;
      if (p[1] > hi[1]) hi = p;
    }
    out.push(...(lo === hi ? [lo] : lo[0] < hi[0] ? [lo, hi] : [hi, lo]));
  }
  return out;
}

/* 3 to 6 round numbers across [lo, hi]. */
export function ticks(lo, hi) {
  const raw = (hi - lo || 1) / 4;
  const ten = 10 ** Math.floor(Math.log10(raw));
  const step = ten * ([1, 2, 2.5, 5, 10].find((m) => m * ten >= raw) || 10);
  const out = [];
  for (let v = Math.ceil(lo / step) * step; v <= hi + step * 1e-9; v += step) out.push(Number(v.toPrecision(12)));
  return out;
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/* ---- with Chart.js --- */

function chartOptions() {
  const axis = () => ({ type: "linear", grid: { color: css("--line") }, border: { display: false },
    ticks: { color: css("--soft"), maxTicksLimit: 6, font: { size: 11 } } });
  return { animation: false, parsing: false, normalized: true, responsive: true, maintainAspectRatio: false,
    interaction: { mode: "nearest", axis: "x", intersect: false }, scales: { x: axis(), y: axis() },
    plugins: { legend: { display: false },
      tooltip: { callbacks: { title: (items) => `step ${items[0].parsed.x.toLocaleString("en")}`,
        label: (item) => ` ${item.dataset.label}: ${number(item.parsed.y)}` } } } };
}

function chartJs(plot, series) {
  const canvas = el("canvas", { "aria-hidden": "true" });
  plot.append(canvas);
  const chart = new window.Chart(canvas, { type: "line", data: { datasets: [] }, options: chartOptions() });
  const draw = () => {
    chart.data.datasets = series.map((s, i) => ({ label: s.label, borderColor: css(`--c${i + 1}`),
      backgroundColor: css(`--c${i + 1}`), borderWidth: s.faint ? 1 : 1.8, tension: 0,
      pointRadius: s.points.length < 2 ? 3 : 0, pointHitRadius: 8,
      data: thin(s.points).map(([x, y]) => ({ x, y })) }));
    chart.update("none");
  };
  const restyle = () => {
    chart.options = chartOptions();
    draw();
  };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", restyle);
  return { draw, free: () => {
    dark.removeEventListener("change", restyle);
    chart.destroy();
  } };
}

/* ---- without --- */

function svg(tag, attrs, text) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  if (text != null) e.textContent = text;
  return e;
}

function plainSvg(plot, series) {
  const draw = () => {
    const w = plot.clientWidth || 500, h = plot.clientHeight || 240;
    const box = { l: 46, r: w - 8, t: 8, b: h - 22 };
    const all = series.flatMap((s) => s.points);
    plot.replaceChildren();
    if (!all.length) return;
    const root = svg("svg", { viewBox: `0 0 ${w} ${h}`, "aria-hidden": "true" });
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const [x, y] of all) {
      [x0, x1] = [Math.min(x0, x), Math.max(x1, x)];
      [y0, y1] = [Math.min(y0, y), Math.max(y1, y)];
    }
    const pad = (y1 - y0 || 1) * 0.05;
    [y0, y1] = [y0 - pad, y1 + pad];
    const px = (x) => box.l + ((x - x0) / (x1 - x0 || 1)) * (box.r - box.l);
    const py = (y) => box.b - ((y - y0) / (y1 - y0)) * (box.b - box.t);
    for (const v of ticks(y0, y1)) {
      root.append(svg("line", { class: "axis", x1: box.l, x2: box.r, y1: py(v), y2: py(v) }),
        svg("text", { x: box.l - 6, y: py(v) + 4, "text-anchor": "end" }, number(v, 3)));
    }
    for (const v of ticks(x0, x1)) root.append(svg("text", { x: px(v), y: h - 5, "text-anchor": "middle" }, String(v)));
    series.forEach((s, i) => {
      const d = thin(s.points).map(([x, y], k) => `${k ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
      if (d) root.append(svg("path", { d, class: `k${i + 1}` }));
    });
    plot.append(root);
  };
  const watch = new ResizeObserver(draw);
  watch.observe(plot);
  return { draw, free: () => watch.disconnect() };
}

/* Curves in a <figure>. series: [{key, label, faint}]. The legend carries the latest values, also for
 * those who do not see the drawing. */
export function curves(figure, title, unit, series) {
  const all = series.map((s) => ({ ...s, points: [] }));
  const values = all.map(() => el("span"));
  const plot = el("div", { class: "plot", role: "img", "aria-label": title });
  figure.replaceChildren(el("figcaption", {}, el("b", {}, unit ? `${title}, ${unit}` : title),
    ...all.map((s, i) => el("span", { class: `key k${i + 1}` }, `${s.label} `, values[i]))), plot);
  const engine = window.Chart ? chartJs(plot, all) : plainSvg(plot, all);
  figure.dataset.engine = window.Chart ? "chart.js" : "svg";
  let frame = 0;
  const redraw = () => {
    frame = 0;
    engine.draw();
    all.forEach((s, i) => put(values[i], s.points.length ? number(s.points[s.points.length - 1][1]) : "–"));
    plot.setAttribute("aria-label", `${title}: ` + all.map((s, i) => `${s.label} ${values[i].textContent}`).join(", "));
    figure.dataset.points = String(all.reduce((n, s) => n + s.points.length, 0));
  };
  return {
    /* A point; one that is not after the last of its curve is known already. */
    add(key, x, y) {
      const s = all.find((a) => a.key === key);
      if (!s || y == null || !isFinite(y) || (s.points.length && s.points[s.points.length - 1][0] >= x)) return;
      s.points.push([x, y]);
      if (!frame) frame = requestAnimationFrame(redraw);
    },
    free() {
      cancelAnimationFrame(frame);
      engine.free();
    },
  };
}
