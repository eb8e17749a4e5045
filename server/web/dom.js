/* Small things that every part of the page uses: elements, texts of numbers, dialogs, errors. All
 * text goes in as text, never as markup: names come from strangers. */

export const $ = (id) => document.getElementById(id);

/* el("td", {class: "num", onclick: f, "aria-label": "x"}, "text", node, ...) */
export function el(tag, attrs, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) {
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (v === true) e.setAttribute(k, "");
    else if (v !== false && v != null) e.setAttribute(k, v);
  }
  e.append(...children.filter((c) => c != null));
  return e;
}

/* Writes only what changed, so that a screen reader and a selection are left in peace. */
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function button(text, onclick, attrs) {
  return el("button", { type: "button", class: "small", onclick, ...attrs }, text);
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return `${i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
}

export function duration(s) {
  if (s == null || !isFinite(s)) return "";
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
  return `${Math.round(s / 86400)} days`;
}

export function number(x, digits = 4) {
  if (x == null || !isFinite(x)) return "–";
  if (Number.isInteger(x)) return x.toLocaleString("en");
  const a = Math.abs(x);
  return a >= 1e5 || a < 1e-3 ? x.toExponential(2) : String(Number(x.toPrecision(digits)));
}

export function when(iso) {
  if (!iso) return "";
  const d = new Date(iso);
  const today = d.toDateString() === new Date().toDateString();
  const time = d.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return today ? time : `${d.toLocaleDateString()} ${time}`;
}

/* Spoken by screen readers. */
export function say(text) {
  put($("live"), text);
}

/* An error in words in its box; null clears it. */
export function fail(box, error) {
  box.hidden = !error;
  if (!error) {
    box.replaceChildren();
    return;
  }
  const more = [];
  if (error.retryAfter) more.push(`Try again in ${duration(Number(error.retryAfter))}.`);
  if (error.requestId) more.push(`Request ${error.requestId}`);
  box.replaceChildren(error.message || String(error));
  if (more.length) box.append(el("small", {}, more.join(" ")));
}

/* Rows of <dt><dd> that are written over in place: [[name, value, small], ...] */
export function facts(dl, rows) {
  const key = rows.map((r) => r[0]).join("|");
  if (dl.dataset.key !== key) {
    dl.dataset.key = key;
    const wrap = dl.classList.contains("tiles");
    dl.replaceChildren(...rows.flatMap(([name]) => {
      const pair = [el("dt", {}, name), el("dd", {}, el("span"), el("small"))];
      return wrap ? [el("div", {}, ...pair)] : pair;
    }));
  }
  dl.querySelectorAll("dd").forEach((dd, i) => {
    put(dd.firstChild, String(rows[i][1]));
    put(dd.lastChild, rows[i][2] || "");
  });
}

/* Asks before something is lost; the safe answer has the focus. */
export function confirmed(text, yes = "Delete") {
  const d = $("confirm-dialog");
  put($("confirm-text"), text);
  put($("confirm-yes"), yes);
  put($("confirm-no"), yes === "Delete" ? "Keep" : "Back");
  return new Promise((resolve) => {
    const answer = (value) => {
      d.close();
      resolve(value);
    };
    $("confirm-yes").onclick = () => answer(true);
    $("confirm-no").onclick = () => answer(false);
    d.oncancel = () => resolve(false);
    d.showModal();
    $("confirm-no").focus();
  });
}

/* A place to drop files on, for the file input inside it. */
export function droppable(label, input) {
  label.addEventListener("dragover", (e) => {
    e.preventDefault();
    label.classList.add("over");
  });
  label.addEventListener("dragleave", () => label.classList.remove("over"));
  label.addEventListener("drop", (e) => {
    e.preventDefault();
    label.classList.remove("over");
    input.files = e.dataTransfer.files;
    input.dispatchEvent(new Event("change"));
  });
}

/* Hands a blob to the browser's downloads. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
