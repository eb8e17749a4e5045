/* A result to look at: any two of input, channels and their overlay, with a slider between them, and
 * for each a range of values and a colour. What is drawn is a preview (image.js), the file is not
 * touched. */
import { $, el, number, put } from "./dom.js";
import { quantiles } from "./image.js";

const COLOURS = { green: [0, 1, 0], magenta: [1, 0, 1], cyan: [0, 1, 1], orange: [1, 0.55, 0], blue: [0.25, 0.5, 1],
  grey: [1, 1, 1] };
const DEFAULTS = ["green", "magenta", "cyan", "orange"];
const STEPS = 1000;

let v = null; // {layers, left, right, at, ...}

function paint(pixels, layer, colour) {
  const [r, g, b] = COLOURS[colour].map((c) => c * 255);
  const scale = 1 / Math.max(layer.hi - layer.lo, 1e-12);
  for (let i = 0, k = 0; i < layer.data.length; i++, k += 4) {
    const t = Math.min(1, Math.max(0, (layer.data[i] - layer.lo) * scale));
    pixels[k] += r * t;
    pixels[k + 1] += g * t;
    pixels[k + 2] += b * t;
    pixels[k + 3] = 255;
  }
}

/* A layer, or the overlay of all channels, as a canvas. */
function render(which) {
  const canvas = el("canvas", { width: v.w, height: v.h });
  const ctx = canvas.getContext("2d");
  const image = ctx.createImageData(v.w, v.h);
  if (which === "overlay") v.layers.filter((l) => l.channel).forEach((l) => paint(image.data, l, l.colour));
  else paint(image.data, v.layers[which], v.layers[which].channel && v.tinted ? v.layers[which].colour : "grey");
  ctx.putImageData(image, 0, 0);
  return canvas;
}

function nameOf(which) {
  return which === "overlay" ? "Overlay" : v.layers[which].name;
}

function compose() {
  const ctx = v.canvas.getContext("2d"), x = Math.round((v.at / STEPS) * v.w);
  ctx.drawImage(v.imageRight, 0, 0);
  if (x > 0) ctx.drawImage(v.imageLeft, 0, 0, x, v.h, 0, 0, x, v.h);
  ctx.fillStyle = "rgb(255 255 255 / .85)";
  ctx.fillRect(x - Math.max(1, v.w / 800), 0, Math.max(1, v.w / 400), v.h);
  put(v.tagLeft, nameOf(v.left));
  put(v.tagRight, nameOf(v.right));
  v.wipe.setAttribute("aria-valuetext", `${Math.round(v.at / 10)} % ${nameOf(v.left)}, the rest ${nameOf(v.right)}`);
}

function draw() {
  cancelAnimationFrame(v.frame);
  v.frame = requestAnimationFrame(() => {
    v.imageLeft = render(v.left);
    v.imageRight = render(v.right);
    compose();
  });
}

function moveTo(at) {
  v.at = Math.min(STEPS, Math.max(0, Math.round(at)));
  v.wipe.value = v.at;
  compose();
}

function chooser(label, side) {
  const options = v.layers.map((l, i) => el("option", { value: i }, l.name));
  if (v.layers.filter((l) => l.channel).length > 1) options.push(el("option", { value: "overlay" }, "Overlay"));
  const select = el("select", { id: `v-${side}` }, ...options);
  select.value = v[side];
  select.onchange = () => {
    v[side] = select.value === "overlay" ? "overlay" : Number(select.value);
    draw();
  };
  return el("label", { class: "field" }, label, select);
}

/* Two sliders of a layer: the values that become black and full. */
function rangeOf(layer, end, label) {
  const span = layer.max - layer.min || 1;
  const out = el("output", {}, number(layer[end], 3));
  const slider = el("input", { type: "range", min: 0, max: STEPS, "aria-label": `${layer.name}: ${label}` });
  slider.value = ((layer[end] - layer.min) / span) * STEPS;
  slider.oninput = () => {
    layer[end] = layer.min + (slider.value / STEPS) * span;
    put(out, number(layer[end], 3));
    draw();
  };
  return el("label", {}, label, slider, out);
}

function controls(layer) {
  const legend = el("legend", {}, layer.name);
  if (layer.channel) {
    const pick = el("select", { "aria-label": `Colour of ${layer.name}` },
      ...Object.keys(COLOURS).map((c) => el("option", { value: c }, c)));
    pick.value = layer.colour;
    pick.onchange = () => {
      layer.colour = pick.value;
      draw();
    };
    legend.append(pick);
  }
  return el("fieldset", { class: "layer" }, legend, rangeOf(layer, "lo", "black"), rangeOf(layer, "hi", "white"));
}

function zoomTo(z) {
  const inner = v.canvas.parentElement;
  inner.classList.toggle("zoomed", z !== "fit");
  v.canvas.style.width = z === "fit" ? "" : `${v.w * Number(z)}px`;
  inner.style.width = z === "fit" ? `${Math.max(v.w, 480)}px` : "";
}

function zoomer() {
  const select = el("select", { id: "v-zoom" }, el("option", { value: "fit" }, "fit"),
    ...[1, 2, 4].map((z) => el("option", { value: z }, `${100 * z} %`)));
  select.onchange = () => zoomTo(select.value);
  return el("label", { class: "field" }, "Zoom", select);
}

function stage() {
  v.canvas = el("canvas", { width: v.w, height: v.h, role: "img", "aria-label": "Preview of the result" });
  v.tagLeft = el("span", { class: "tag left" });
  v.tagRight = el("span", { class: "tag right" });
  v.wipe = el("input", { type: "range", min: 0, max: STEPS, value: v.at, class: "wipe", id: "v-wipe", "aria-label": "Slider between the two images" });
  v.wipe.oninput = () => moveTo(v.wipe.valueAsNumber);
  const drag = (e) => {
    const box = v.canvas.getBoundingClientRect();
    moveTo(((e.clientX - box.left) / box.width) * STEPS);
  };
  v.canvas.onpointerdown = (e) => {
    v.canvas.setPointerCapture(e.pointerId);
    drag(e);
  };
  v.canvas.onpointermove = (e) => v.canvas.hasPointerCapture(e.pointerId) && drag(e);
  return [el("div", { class: "stage" }, el("div", { class: "stage-in" }, v.canvas, v.tagLeft, v.tagRight)), v.wipe];
}

function tint() {
  const box = el("input", { type: "checkbox", id: "v-tint" });
  box.onchange = () => {
    v.tinted = box.checked;
    draw();
  };
  return el("label", { class: "check" }, box, "single channels in colour");
}

/* Shows layers [{name, channel, w, h, data}] of one size in `host`; extra goes beside the choosers,
 * below under the controls. Ranges and choices outlive a change of frame. */
export function showViewer(host, layers, extra, below) {
  const old = v && v.layers.length === layers.length ? v : null;
  v = { layers, w: layers[0].w, h: layers[0].h, at: old ? old.at : STEPS / 2, frame: 0, tinted: false,
    left: old ? old.left : 0, right: old ? old.right : layers.length > 2 ? "overlay" : layers.length - 1 };
  let n = 0;
  layers.forEach((l) => {
    [l.lo, l.hi, l.min, l.max] = quantiles(l.data, 0.003, 0.997);
    if (l.channel) l.colour = DEFAULTS[n++ % DEFAULTS.length];
  });
  const [box, wipe] = stage();
  host.replaceChildren(el("div", { class: "v-bar" }, chooser("Left", "left"), chooser("Right", "right"), zoomer(), ...extra),
    box, wipe, el("div", { class: "layers" }, ...layers.map(controls)), tint(), ...below);
  host.hidden = false;
  host.dataset.size = `${v.w}x${v.h}`;
  zoomTo("fit");
  draw();
}
