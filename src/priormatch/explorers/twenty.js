// Draw twenty codes from N(0, I) and twenty from the quilt, and see what the decoder makes of both.
import { announcer, begin, button, choice, digitCanvas, make, number, pictureOf, setter } from "./controls.js";
import { sigmoid, tensorsOf, whenDecoderIsWanted } from "./network.js";
import { colourKey, fieldOf, Plane } from "./plane.js";

const COUNT = 20, THIN = -Math.log(10);
const NAMES = { prior: "N(0, I)", quilt: "the quilt", mixture: "the fitted mixture" };

/** Return the codes of a turn, with how thin the quilt is there and how far the nearest patch. */
function drawn(stored, source, turn) {
  return Array.from({ length: COUNT }, (_, i) => {
    const row = COUNT * turn + i;
    const code = [0, 1].map((j) => stored[`${source}.codes`][2 * row + j]);
    return { code, thin: stored[`${source}.log_ratio`][row] < THIN, distance: stored[`${source}.distance`][row] };
  });
}

/** Twenty pictures under a title, and two lines about their codes. */
function sheet(name) {
  const title = make("p", { class: "explorer-note" });
  const digits = Array.from({ length: COUNT }, () => digitCanvas(""));
  const thin = make("dd", { "data-value": `${name}-thin` }), near = make("dd", { "data-value": `${name}-near` });
  return {
    digits,
    node: make("div", { class: "explorer-sheet" }, title,
      make("div", { class: "explorer-twenty-digits" }, ...digits.map((digit) => digit.node)),
      make("dl", { class: "explorer-table" }, make("dt", {}, "in seams"), thin, make("dt", {}, "nearest patch"), near)),
    /** Say what the codes are; return it in a sentence. */
    tell(source, draws) {
      const distances = draws.map((draw) => draw.distance).sort((a, b) => a - b);
      const median = (distances[COUNT / 2 - 1] + distances[COUNT / 2]) / 2;
      const inSeams = draws.filter((draw) => draw.thin).length;
      title.textContent = `twenty draws of ${NAMES[source]}`;
      thin.textContent = `${inSeams} of ${COUNT}`;
      near.textContent = `${number(median, 2)} widths away`;
      draws.forEach((draw, i) => {
        digits[i].node.classList.toggle("explorer-thin", draw.thin);
        digits[i].node.setAttribute("aria-label", `Draw ${i + 1} of ${NAMES[source]}, decoded${draw.thin ? "; in a seam" : ""}`);
      });
      return `${inSeams} of ${COUNT} draws of ${NAMES[source]} lie in seams; the nearest patch is ${near.textContent}, as a median.`;
    },
  };
}

async function render({ model, el }) {
  const [stored, field] = await Promise.all([tensorsOf(model.get("codes")), fieldOf(model.get("field"))]);
  begin(el, "twenty");
  const set = setter(model);
  const say = announcer(el);
  const turns = stored["prior.distance"].shape[0] / COUNT;
  const picture = field.picture("ratio");
  let decoder = null, draws = { prior: [], other: [] };

  const plane = new Plane(
    () => {
      plane.image(picture);
      plane.circles("#222", "#fff");
    },
    () => {
      for (const { code, thin } of draws.prior) plane.mark(code, thin ? 6 : 3.5);
      for (const { code } of draws.other) {
        for (const [colour, radius] of [["#fff", 3.4], ["#222", 2.4]]) {
          plane.context.fillStyle = colour;
          plane.context.beginPath();
          plane.context.arc(...plane.place(code), radius * plane.line, 0, 2 * Math.PI);
          plane.context.fill();
        }
      }
    },
  );
  plane.asPicture();
  const sheets = { prior: sheet("prior"), other: sheet("other") };
  const status = make("p", { class: "explorer-status" });
  const source = choice({ legend: "On the right", options: [["quilt", "the quilt"], ["mixture", "a fitted mixture"]], change: set("source") });

  const decode = () => {
    if (!decoder) return;
    for (const [name, { digits }] of Object.entries(sheets)) {
      draws[name].forEach(({ code }, i) => digits[i].draw(Float64Array.from(decoder.forward(code), sigmoid)));
    }
  };
  const update = () => {
    const turn = model.get("turn"), other = model.get("source");
    draws = { prior: drawn(stored, "prior", turn), other: drawn(stored, other, turn) };
    source.update(other);
    const words = `${sheets.prior.tell("prior", draws.prior)} ${sheets.other.tell(other, draws.other)}`;
    plane.top.setAttribute("aria-label", `The latent plane, red where codes are thinner than N(0, I). ${words}`);
    plane.drawTop();
    decode();
    say(words);
  };
  el.append(
    make("div", { class: "explorer-twenty-columns" }, sheets.prior.node,
      make("div", {}, plane.node, colourKey("ratio")), sheets.other.node),
    make("div", { class: "explorer-twenty-controls" },
      button("Draw twenty again", () => set("turn")((model.get("turn") + 1) % turns)), source.node, status));

  model.on("change:turn", update);
  model.on("change:source", update);
  update();
  Object.values(sheets).flatMap(({ digits }) => digits).forEach((digit, i) => {
    const first = model.get("pictures")?.[i];
    if (first) digit.draw(pictureOf(first));
  });
  whenDecoderIsWanted(el, model, status, (loaded) => {
    decoder = loaded;
    decode();
  });
}

export default { render };
