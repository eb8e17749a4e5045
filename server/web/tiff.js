/* TIFF and BigTIFF as far as a preview needs them: grey pages in strips or tiles, plain or deflate,
 * 8 to 32 bits. Bytes are read from the file piece by piece, never all of it. Whatever else comes is
 * an Error in words: the daemon reads more kinds than this preview. */

const MAX_PAGES = 4096;
const MAX_CHUNK_BYTES = 256 << 20;
const TYPE_BYTES = [0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8];
const COMPRESSIONS = { 5: "LZW", 7: "JPEG", 32773: "PackBits", 34925: "LZMA", 50000: "zstd" };
const LITTLE = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

async function read(blob, at, n) {
  return new DataView(await blob.slice(at, at + n).arrayBuffer());
}

function value(view, at, type, le) {
  switch (type) {
    case 1: case 2: return view.getUint8(at);
    case 3: return view.getUint16(at, le);
    case 4: case 13: return view.getUint32(at, le);
    case 16: case 18: return Number(view.getBigUint64(at, le));
    default: return NaN;
  }
}

/* The numbers, or the text, of one directory entry. */
async function field(f, view, at) {
  const type = view.getUint16(at + 2, f.le);
  const n = f.big ? Number(view.getBigUint64(at + 4, f.le)) : view.getUint32(at + 4, f.le);
  const size = (TYPE_BYTES[type] || 0) * n, inline = f.big ? 8 : 4, data = at + (f.big ? 12 : 8);
  if (size > 16 << 20) throw new Error("its directory is too large");
  let v = view, from = data;
  if (size > inline) {
    v = await read(f.blob, f.big ? Number(view.getBigUint64(data, f.le)) : view.getUint32(data, f.le), size);
    from = 0;
    if (v.byteLength < size) throw new Error("it is cut short");
  }
  if (type === 2) return new TextDecoder().decode(new Uint8Array(v.buffer, v.byteOffset + from, n)).replace(/\0+$/, "");
  return Array.from({ length: n }, (_, i) => value(v, from + i * TYPE_BYTES[type], type, f.le));
}

/* Where the directories stand; their contents are read when a page is looked at. */
async function directories(f, first) {
  const found = [], entry = f.big ? 20 : 12, head = f.big ? 8 : 2;
  for (let at = first; at && found.length < MAX_PAGES;) {
    const v = await read(f.blob, at, head + 64 * entry + 8);
    if (v.byteLength < head || found.includes(at)) break;
    const n = f.big ? Number(v.getBigUint64(0, f.le)) : v.getUint16(0, f.le);
    const end = head + n * entry;
    const tail = end + 8 <= v.byteLength ? v : await read(f.blob, at + end, 8);
    const from = tail === v ? end : 0;
    if (tail.byteLength < from + (f.big ? 8 : 4)) break;
    found.push({ at: at + head, n });
    at = f.big ? Number(tail.getBigUint64(from, f.le)) : tail.getUint32(from, f.le);
  }
  return found;
}

const TAGS = { 256: "width", 257: "height", 258: "bits", 259: "compression", 262: "photometric", 270: "description",
  273: "offsets", 277: "samples", 278: "rows", 279: "counts", 317: "predictor", 322: "tileWidth", 323: "tileHeight",
  324: "offsets", 325: "counts", 339: "format" };

async function page(f, dir) {
  const entry = f.big ? 20 : 12, p = {};
  const v = await read(f.blob, dir.at, dir.n * entry);
  for (let i = 0; i < dir.n; i++) {
    const name = TAGS[v.getUint16(i * entry, f.le)];
    if (!name) continue;
    const x = await field(f, v, i * entry);
    p[name] = name === "offsets" || name === "counts" || name === "description" ? x : x[0];
  }
  p.compression ||= 1;
  p.bits ||= 1;
  p.format ||= 1;
  check(p);
  p.chunkWidth = p.tileWidth || p.width;
  p.chunkHeight = p.tileHeight || Math.min(p.rows || p.height, p.height);
  p.across = Math.ceil(p.width / p.chunkWidth);
  return p;
}

function check(p) {
  if (!(p.width > 0 && p.height > 0 && p.offsets && p.offsets.length)) throw new Error("it has no pixels");
  if ((p.samples || 1) !== 1) throw new Error(`it has ${p.samples} samples per pixel`);
  if (![1, 8, 32946].includes(p.compression))
    throw new Error(`it is compressed with ${COMPRESSIONS[p.compression] || `method ${p.compression}`}`);
  if (p.format === 3 ? p.bits !== 32 : ![8, 16, 32].includes(p.bits)) throw new Error(`its pixels have ${p.bits} bits`);
  if (p.predictor === 3) throw new Error("it uses the predictor for floating point");
}

async function inflate(buffer) {
  const stream = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

function swap(bytes, size) {
  for (let i = 0; i + size <= bytes.length; i += size) bytes.subarray(i, i + size).reverse();
}

function typed(buffer, p) {
  const n = Math.floor(buffer.byteLength / (p.bits / 8));
  if (p.format === 3) return new Float32Array(buffer, 0, n);
  const signed = p.format === 2;
  if (p.bits === 8) return signed ? new Int8Array(buffer, 0, n) : new Uint8Array(buffer, 0, n);
  if (p.bits === 16) return signed ? new Int16Array(buffer, 0, n) : new Uint16Array(buffer, 0, n);
  return signed ? new Int32Array(buffer, 0, n) : new Uint32Array(buffer, 0, n);
}

/* Rows [row, row + n) of chunk i as numbers. */
async function chunk(f, p, i, row, n) {
  const size = p.bits / 8, line = p.chunkWidth * size;
  const at = p.offsets[i], whole = p.counts ? p.counts[i] : line * p.chunkHeight;
  const plain = p.compression === 1;
  if (!plain && line * p.chunkHeight > MAX_CHUNK_BYTES) throw new Error("it is compressed in one large piece");
  let buffer = await f.blob.slice(plain ? at + row * line : at, plain ? at + (row + n) * line : at + whole).arrayBuffer();
  if (!plain) buffer = (await inflate(buffer)).slice(p.predictor === 2 ? 0 : row * line, (row + n) * line);
  if (f.le !== LITTLE && size > 1) swap(new Uint8Array(buffer), size);
  const v = typed(buffer, p);
  if (p.predictor !== 2 || plain) return v;
  for (let y = 0; y + p.chunkWidth <= v.length; y += p.chunkWidth)
    for (let x = 1; x < p.chunkWidth; x++) v[y + x] += v[y + x - 1];
  return v.subarray(row * p.chunkWidth);
}

/* Rows [y0, y0 + n) of a page. */
async function rows(f, p, y0, n) {
  const out = new Float32Array(p.width * n);
  for (let y = y0; y < y0 + n;) {
    const down = Math.floor(y / p.chunkHeight), top = y - down * p.chunkHeight;
    const take = Math.min(p.chunkHeight - top, y0 + n - y);
    for (let c = 0; c < p.across; c++) {
      const v = await chunk(f, p, down * p.across + c, top, take);
      const left = c * p.chunkWidth, w = Math.min(p.chunkWidth, p.width - left);
      if (v.length < (take - 1) * p.chunkWidth + w) throw new Error("it is cut short");
      for (let k = 0; k < take; k++)
        out.set(v.subarray(k * p.chunkWidth, k * p.chunkWidth + w), (y + k - y0) * p.width + left);
    }
    y += take;
  }
  return out;
}

/* {pages, width, height, description, rows(page, y0, n)}, or an Error that says why not. */
export async function openTiff(blob) {
  const v = await read(blob, 0, 16);
  if (v.byteLength < 8) throw new Error("it is cut short");
  const f = { blob, le: v.getUint16(0) === 0x4949 };
  f.big = v.getUint16(2, f.le) === 43;
  const dirs = await directories(f, f.big ? Number(v.getBigUint64(8, f.le)) : v.getUint32(4, f.le));
  if (!dirs.length) throw new Error("it has no pages");
  const first = await page(f, dirs[0]);
  let known = { number: 0, page: first };
  return { pages: dirs.length, width: first.width, height: first.height, description: first.description || "",
    rows: async (number, y0, n) => {
      if (known.number !== number) known = { number, page: await page(f, dirs[number]) };
      if (known.page.width !== first.width || known.page.height !== first.height)
        throw new Error("its pages differ in size");
      return rows(f, known.page, y0, n);
    } };
}
