// Networks in the browser: the stored weights, in half precision, and the forward pass.
import { whenWanted } from "./controls.js";

const downloads = new Map();

/** Return the bytes of a trait: in Jupyter they came with the widget, on a page they are a file. */
async function bytesOf(source) {
  if (typeof source !== "string") return new Uint8Array(source.buffer, source.byteOffset, source.byteLength);
  const answer = await fetch(source);
  if (!answer.ok) throw new Error(`${source}: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

async function unzip(bytes) {
  // A server that says Content-Encoding: gzip has had the browser unzip the file already.
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const ARRAYS = { U8: Uint8Array, I16: Int16Array, F16: Uint16Array, I32: Int32Array, F32: Float32Array, F64: Float64Array };

/** Parse a safetensors file into arrays by name; those in half precision become Float32Arrays. */
function parse(bytes) {
  const headerLength = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + headerLength)));
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: ends }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    // A copy, because the file does not align numbers as typed arrays want them.
    const copy = bytes.slice(8 + headerLength + ends[0], 8 + headerLength + ends[1]);
    const values = new ARRAYS[dtype](copy.buffer);
    tensors[name] = Object.assign(dtype === "F16" ? fromHalf(values) : values, { shape });
  }
  return tensors;
}

let halves;

function fromHalf(bits) {
  halves ??= Float32Array.from({ length: 65536 }, (_, i) => {
    const exponent = (i >> 10) & 31, fraction = i & 1023;
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
    return i & 32768 ? -size : size;
  });
  return Float32Array.from(bits, (i) => halves[i]);
}

/** Return the tensors of a trait, downloaded once for all explorers of a page. */
export function tensorsOf(source) {
  if (!downloads.has(source)) {
    const tensors = bytesOf(source).then(unzip).then(parse);
    // A download that failed is tried again the next time.
    tensors.catch(() => downloads.delete(source));
    downloads.set(source, tensors);
  }
  return downloads.get(source);
}

/** A multilayer perceptron with rectified linear units, computed in double precision. */
export class Network {
  constructor(tensors) {
    this.layers = [];
    for (let i = 0; tensors[`${i}.weight`]; i++) {
      const bias = tensors[`${i}.bias`];
      this.layers.push({ weight: tensors[`${i}.weight`], bias, output: new Float64Array(bias.length) });
    }
  }

  /** Return the outputs of the last layer; the next call overwrites them. */
  forward(input) {
    let values = input;
    for (const layer of this.layers) {
      const { weight, bias, output } = layer;
      const inputs = values.length, last = layer === this.layers.at(-1);
      for (let row = 0, k = 0; row < output.length; row++) {
        let sum = bias[row];
        for (let column = 0; column < inputs; column++, k++) sum += weight[k] * values[column];
        output[row] = last || sum > 0 ? sum : 0;
      }
      values = output;
    }
    return values;
  }
}

/** Return the network of a trait. */
export const networkOf = async (source) => new Network(await tensorsOf(source));

/** Load the decoder once a reader reaches for the explorer, and hand it on. */
export function whenDecoderIsWanted(el, model, status, use) {
  whenWanted(el, typeof model.get("decoder") !== "string", async () => {
    status.textContent = "loading the decoder …";
    const decoder = await networkOf(model.get("decoder"));
    status.textContent = "";
    use(decoder);
  });
}

export const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));
