// Draw an X or pick one; the encoder answers with Q(z|X), and the decoder draws what it says.
import { announcer, begin, button, choice, digitCanvas, make, number, onThemeChange, pictureOf, saver, valueCells, whenWanted } from "./controls.js";
import { networkOf, sigmoid, tensorsOf } from "./network.js";
import { colourKey, fieldOf, Plane } from "./plane.js";

const PAD = 280, PEN = 22;
const SIDE = 28, BOX = 20;
const POSTERIOR = "#d55e00";

/** Prepare ink as MNIST was: scaled into a box of 20 pixels, anti-aliased, centred by its mass. */
function prepare(alpha, size) {
  let left = size, right = -1, top = size, bottom = -1, mass = 0, sumX = 0, sumY = 0;
  for (let y = 0, i = 0; y < size; y++) {
    for (let x = 0; x < size; x++, i++) {
      const ink = alpha[4 * i + 3];
      if (!ink) continue;
      left = Math.min(left, x); right = Math.max(right, x);
      top = Math.min(top, y); bottom = Math.max(bottom, y);
      mass += ink; sumX += ink * (x + 0.5); sumY += ink * (y + 0.5);
    }
  }
  const grey = new Float64Array(SIDE * SIDE);
  if (!mass) return grey;
  const scale = BOX / Math.max(right - left + 1, bottom - top + 1);
  const place = (pixel, sum) => Math.floor((pixel + 0.5 - sum / mass) * scale + SIDE / 2);
  for (let y = top; y <= bottom; y++) {
    const row = place(y, sumY);
    for (let x = left; x <= right; x++) {
      const column = place(x, sumX), ink = alpha[4 * (y * size + x) + 3];
      if (ink && row >= 0 && row < SIDE && column >= 0 && column < SIDE) grey[row * SIDE + column] += (scale * scale * ink) / 255;
    }
  }
  return grey.map((share) => Math.min(1, share));
}

/** A surface for pointer or finger; `drawn` gets the prepared pixels after each stroke, and during it. */
function drawingPad(drawn) {
  const node = make("canvas", {
    width: PAD, height: PAD, class: "explorer-pad", role: "img",
    "aria-label": "Drawing pad, for a pointer or a finger. With a keyboard, pick a test image below.",
  });
  const context = node.getContext("2d", { willReadFrequently: true });
  let last = null, fresh = true;
  const clear = () => context.clearRect(0, 0, PAD, PAD);
  const place = (event) => {
    const box = node.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * PAD, ((event.clientY - box.top) / box.height) * PAD];
  };
  const line = (from, to) => {
    context.strokeStyle = getComputedStyle(node).color;
    context.lineWidth = PEN;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
  };
  const report = () => drawn(Array.from(prepare(context.getImageData(0, 0, PAD, PAD).data, PAD), (grey) => (grey >= 0.5 ? "1" : "0")).join(""));
  node.addEventListener("pointerdown", (event) => {
    node.setPointerCapture(event.pointerId);
    if (fresh) clear();
    fresh = false;
    last = place(event);
    line(last, last);
    report();
  });
  node.addEventListener("pointermove", (event) => {
    if (!last || !event.buttons) return;
    for (const part of event.getCoalescedEvents?.() ?? [event]) {
      const next = place(part);
      line(last, next);
      last = next;
    }
    report();
  });
  const end = () => (last = null);
  node.addEventListener("pointerup", end);
  node.addEventListener("pointercancel", end);
  onThemeChange(() => {
    // What is drawn takes the new ink.
    context.globalCompositeOperation = "source-in";
    context.fillStyle = getComputedStyle(node).color;
    context.fillRect(0, 0, PAD, PAD);
    context.globalCompositeOperation = "source-over";
  });
  return {
    node,
    /** Show pixels that were not drawn here; the next stroke starts anew. */
    show(pixels) {
      clear();
      fresh = true;
      context.fillStyle = getComputedStyle(node).color;
      const size = PAD / SIDE;
      for (let i = 0; i < SIDE * SIDE; i++) {
        if (pixels[i] === "1") context.fillRect((i % SIDE) * size, Math.floor(i / SIDE) * size, size, size);
      }
    },
  };
}

const bits = (pixels) => Float64Array.from(pixels, Number);

async function render({ model, el }) {
  const [field, stored] = await Promise.all([fieldOf(model.get("field")), tensorsOf(model.get("digits"))]);
  begin(el, "draw");
  const save = saver(model);
  const say = announcer(el);
  const quilt = field.picture("density");
  const images = Array.from(stored.labels, (_, i) => stored.images.subarray(784 * i, 784 * (i + 1)).join(""));
  let networks = null;
  let answer = model.get("answer");

  const plane = new Plane(
    () => {
      plane.image(quilt);
      plane.circles("#fff", "#222");
    },
    () => {
      if (!answer) return;
      plane.mark(answer.mean);
      plane.lens(answer.mean, answer.scale, quilt, POSTERIOR);
    },
  );
  plane.asPicture();

  const setPixels = (pixels, digit) => {
    model.set("digit", digit);
    model.set("pixels", pixels);
    save();
  };
  const pad = drawingPad((pixels) => setPixels(pixels, -1));
  const seen = digitCanvas("X, as the encoder sees it");
  const guess = digitCanvas("The reconstruction");
  const status = make("p", { class: "explorer-status" });
  const thumbnails = [];
  const picker = choice({
    legend: "Test images",
    options: images.map((_, i) => {
      const thumbnail = digitCanvas("", "explorer-thumbnail");
      thumbnails.push(thumbnail);
      thumbnail.node.setAttribute("aria-hidden", "true");
      return [i, thumbnail.node, `a ${stored.labels[i]}, test image number ${i + 1}`];
    }),
    change: (i) => setPixels(images[i], i),
  });
  picker.node.classList.add("explorer-pictures");
  const values = valueCells(["mean", "scale", "kl"]);

  const show = () => {
    const pixels = model.get("pixels");
    picker.update(model.get("digit"));
    seen.draw(bits(pixels));
    if (networks) {
      const [first, second, third, fourth] = networks.encoder.forward(bits(pixels));
      answer = { mean: [first, second], scale: [Math.exp(third / 2), Math.exp(fourth / 2)] };
      guess.draw(Float64Array.from(networks.decoder.forward(answer.mean), sigmoid));
    }
    if (!answer) return;
    const kl = answer.mean.reduce((sum, mean, j) => sum + 0.5 * (mean ** 2 + answer.scale[j] ** 2 - 1) - Math.log(answer.scale[j]), 0);
    values.mean.textContent = `${number(answer.mean[0], 2)}, ${number(answer.mean[1], 2)}`;
    values.scale.textContent = `${number(answer.scale[0], 3)}, ${number(answer.scale[1], 3)}`;
    values.kl.textContent = `${number(kl, 2)} nats`;
    plane.drawTop();
    const words = `the mean is ${values.mean.textContent}, the scales are ${values.scale.textContent}, the KL from the prior is ${values.kl.textContent}`;
    plane.top.setAttribute("aria-label", `The posterior of X on the quilt: ${words}`);
    say(`Of this X ${words}.`);
  };
  const load = async () => {
    status.textContent = "loading the networks …";
    const [encoder, decoder] = await Promise.all([networkOf(model.get("encoder")), networkOf(model.get("decoder"))]);
    networks = { encoder, decoder };
    status.textContent = "";
    show();
  };

  const picture = (canvas, caption) => make("div", { class: "explorer-card" }, canvas, make("p", { class: "explorer-note" }, caption));
  el.append(make("div", { class: "explorer-columns" },
    make("div", { class: "explorer-main" }, plane.node, colourKey("density")),
    make("div", { class: "explorer-side" },
      make("div", { class: "explorer-pads" },
        make("div", { class: "explorer-card" }, pad.node, status),
        make("div", { class: "explorer-stack" }, picture(seen.node, "X, as seen"), picture(guess.node, "reconstruction"))),
      button("Clear", () => {
        setPixels("0".repeat(784), -1);
        pad.show(model.get("pixels"));
      }),
      picker.node,
      make("dl", { class: "explorer-table" },
        make("dt", {}, "mean of Q(z|X)"), values.mean, make("dt", {}, "its scales"), values.scale,
        make("dt", {}, "KL(Q‖p)"), values.kl))));

  model.on("change:digit", () => {
    const digit = model.get("digit");
    if (digit < 0) return picker.update(digit);
    model.set("pixels", images[digit]);
    pad.show(images[digit]);
  });
  model.on("change:pixels", show);
  // Only what is on the page knows the page's ink.
  thumbnails.forEach((thumbnail, i) => thumbnail.draw(bits(images[i])));
  pad.show(model.get("pixels"));
  if (answer) guess.draw(pictureOf(answer.picture));
  show();
  whenWanted(el, typeof model.get("encoder") !== "string", load);
}

export default { render };
