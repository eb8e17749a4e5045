/* An image file as pages of numbers for the preview: TIFF (tiff.js) or NPY. Large pages are averaged
 * down while they are read, so that no more than the preview is ever held. */
import { openTiff } from "./tiff.js";

export const MAX_SIDE = 2048; // of a preview
const BLOCK_PIXELS = 4 << 20;

const NPY_TYPES = { "|u1": Uint8Array, "|i1": Int8Array, "<u2": Uint16Array, "<i2": Int16Array, "<u4": Uint32Array,
  "<i4": Int32Array, "<f4": Float32Array, "<f8": Float64Array };

async function openNpy(blob) {
  const head = new DataView(await blob.slice(0, 12).arrayBuffer());
  const wide = head.getUint8(6) > 1;
  const n = wide ? head.getUint32(8, true) : head.getUint16(8, true), at = (wide ? 12 : 10) + n;
  const text = await blob.slice(wide ? 12 : 10, Math.min(at, 65536)).text();
  const descr = /'descr':\s*'([^']*)'/.exec(text), shape = /'shape':\s*\(([^)]*)\)/.exec(text);
  const Type = descr && NPY_TYPES[descr[1]];
  if (!Type || !shape || /'fortran_order':\s*True/.test(text)) throw new Error("it is an NPY of a kind that is not shown");
  const sides = shape[1].split(",").map((s) => s.trim()).filter(Boolean).map(Number);
  if (sides.length < 2) throw new Error("it has fewer than two axes");
  const [height, width] = sides.slice(-2), size = Type.BYTES_PER_ELEMENT;
  return { pages: sides.slice(0, -2).reduce((a, b) => a * b, 1), width, height, description: "",
    rows: async (page, y0, count) => {
      const from = at + (page * height + y0) * width * size;
      const part = await blob.slice(from, from + count * width * size).arrayBuffer();
      if (part.byteLength < count * width * size) throw new Error("it is cut short");
      return new Type(part);
    } };
}

/* {pages, width, height, description, rows}; an Error says why it cannot be shown. */
export async function openImage(blob) {
  const magic = new Uint8Array(await blob.slice(0, 6).arrayBuffer());
  if (magic[0] === 0x93 && magic[1] === 0x4e) return openNpy(blob);
  if ((magic[0] === 0x49 && magic[1] === 0x49) || (magic[0] === 0x4d && magic[1] === 0x4d)) return openTiff(blob);
  throw new Error("it is neither TIFF nor NPY");
}

/* The mean of some pages, averaged down by a whole factor to at most MAX_SIDE: {w, h, factor, data} */
export async function preview(image, pages) {
  const k = Math.max(1, Math.ceil(Math.max(image.width, image.height) / MAX_SIDE));
  const w = Math.ceil(image.width / k), h = Math.ceil(image.height / k);
  const data = new Float32Array(w * h);
  const band = Math.max(k, Math.floor(BLOCK_PIXELS / image.width / k) * k);
  for (const page of pages) {
    for (let y0 = 0; y0 < image.height; y0 += band) {
      const n = Math.min(band, image.height - y0);
      const v = await image.rows(page, y0, n);
      for (let y = 0; y < n; y++) {
        const row = Math.floor((y0 + y) / k) * w;
        for (let x = 0; x < image.width; x++) data[row + (k === 1 ? x : Math.floor(x / k))] += v[y * image.width + x];
      }
    }
  }
  for (let y = 0; y < h; y++) {
    const high = Math.min(k, image.height - y * k);
    for (let x = 0; x < w; x++) data[y * w + x] /= high * Math.min(k, image.width - x * k) * pages.length;
  }
  return { w, h, factor: k, data };
}

/* Names and counts of our own OME-TIFF: {channels: [name], frames}. Its pages are channel by channel. */
export function omeOf(image) {
  const doc = new DOMParser().parseFromString(image.description, "application/xml");
  const names = [...doc.getElementsByTagName("Channel")].map((c, i) => c.getAttribute("Name") || `channel ${i + 1}`);
  const channels = names.length ? names : Array.from({ length: image.pages }, (_, i) => `channel ${i + 1}`);
  return { channels, frames: Math.max(1, Math.floor(image.pages / channels.length)) };
}

/* A range for display: between two quantiles of the pixels. */
export function quantiles(data, low, high) {
  const step = Math.max(1, Math.floor(data.length / 50000));
  const some = [];
  for (let i = 0; i < data.length; i += step) if (isFinite(data[i])) some.push(data[i]);
  some.sort((a, b) => a - b);
  if (!some.length) return [0, 1, 0, 1];
  const at = (q) => some[Math.min(some.length - 1, Math.floor(q * some.length))];
  return [at(low), at(high), some[0], some[some.length - 1]];
}
