// Ten intervals on (0, 10), one for each digit: move and stretch them, and rate = information + mismatch.
import { announcer, arrows, begin, button, choice, costBars, follow, make, number, saver, slider, valueCells } from "./controls.js";
import { DIGIT_COLOURS } from "./plane.js";

const LENGTH = 10, LEAST = 0.4, STEP = 0.1, SHARE = 0.1;
const WIDTH = 640, HEIGHT = 100;
const TOP = 0.3; // of the densities, unless the mixture is higher
const REACH = 12; // pixels on either side of an end that are a handle
// The rows from the top: a staircase in the discussion's arrangement, where ones come first.
const ROWS = [0, 9, 8, 7, 6, 5, 4, 3, 2, 1];
const ARRANGEMENTS = {
  "Side by side": (digit) => [(digit + 9) % 10, ((digit + 9) % 10) + 1],
  "All on everything": () => [0, LENGTH],
  "Pile up": () => [4.5, 5.5],
};
const PRICES = { rate: "rate", information: "information I[k; z]", mismatch: "mismatch KL(q‖p)" };

const sum = (values) => values.reduce((total, value) => total + value, 0);
const within = (value, low, high) => Math.min(high, Math.max(low, value));
const inTenths = (z) => Math.round(z / STEP) / 10;
const x = (z) => ((z / LENGTH) * WIDTH).toFixed(1);

/** The pieces between neighbouring ends, in which each digit's share of q is constant. */
function cellsOf(intervals) {
  const edges = [...new Set([0, LENGTH, ...intervals.flat()])].sort((a, b) => a - b);
  return edges.slice(1).map((end, i) => {
    const start = edges[i], middle = (start + end) / 2;
    const shares = intervals.map(([from, to]) => (from < middle && middle < to ? SHARE / (to - from) : 0));
    return { start, end, width: end - start, shares, q: sum(shares) };
  });
}

function costsOf(intervals, cells) {
  const covered = cells.filter(({ q }) => q > 0);
  const missed = 1 - sum(covered.map(({ width }) => width)) / LENGTH;
  return {
    rate: sum(intervals.map(([from, to]) => SHARE * Math.log(LENGTH / (to - from)))),
    information: sum(covered.map(({ width, shares, q }) =>
      width * sum(shares.map((share) => share && share * Math.log(share / (SHARE * q)))))),
    mismatch: sum(covered.map(({ width, q }) => width * q * Math.log(LENGTH * q))),
    missed: missed < STEP / LENGTH / 2 ? 0 : missed,
    reverse: missed < STEP / LENGTH / 2 ? -sum(cells.map(({ width, q }) => (width / LENGTH) * Math.log(LENGTH * q))) : Infinity,
  };
}

/** The mixture, stacked by digit, and the prior. */
function mixturePlot() {
  const areas = DIGIT_COLOURS.map((colour) => make("path", { class: "explorer-area", style: `fill:${colour}` }));
  const outline = make("path", { class: "explorer-quilt" });
  const prior = make("line", { class: "explorer-prior", x1: 0, x2: WIDTH });
  const node = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, ...areas, outline, prior);
  return {
    node,
    update(cells, words) {
      const top = Math.max(TOP, ...cells.map(({ q }) => 1.04 * q));
      const y = (density) => (HEIGHT * (1 - density / top)).toFixed(1);
      const steps = (heights) => cells.map(({ start, end }, i) => `L${x(start)} ${y(heights[i])}L${x(end)} ${y(heights[i])}`);
      let below = cells.map(() => 0);
      for (const digit of [...ROWS].reverse()) {
        const above = below.map((height, i) => height + cells[i].shares[digit]);
        const back = cells.map(({ start, end }, i) => `L${x(end)} ${y(below[i])}L${x(start)} ${y(below[i])}`).reverse();
        areas[digit].setAttribute("d", `${[...steps(above), ...back].join("").replace("L", "M")}Z`);
        below = above;
      }
      outline.setAttribute("d", steps(below).join("").replace("L", "M"));
      for (const end of ["y1", "y2"]) prior.setAttribute(end, y(1 / LENGTH));
      node.setAttribute("aria-label", `The mixture q and the prior p on (0, 10). ${words}`);
    },
  };
}

function render({ model, el }) {
  begin(el, "drag");
  const save = saver(model);
  const say = announcer(el);
  const put = (changes) => {
    for (const [trait, value] of Object.entries(changes)) model.set(trait, value);
    save();
    update(); // also where nothing has changed: a slider may stand beyond what is possible
  };
  const own = () => model.get("intervals")[model.get("digit")];
  const place = (from, to) =>
    put({ intervals: model.get("intervals").map((pair, digit) => (digit === model.get("digit") ? [inTenths(from), inTenths(to)] : pair)) });
  const startAt = (z) => place(within(z, 0, own()[1] - LEAST), own()[1]);
  const endAt = (z) => place(own()[0], within(z, own()[0] + LEAST, LENGTH));
  const moveTo = (z) => {
    const [from, to] = own(), start = within(z, 0, LENGTH - (to - from));
    place(start, start + to - from);
  };
  const stretch = (by) => {
    const [from, to] = own(), length = within(to - from + 2 * by, LEAST, LENGTH);
    const start = inTenths(within((from + to - length) / 2, 0, LENGTH - length));
    place(start, start + length);
  };

  const rows = DIGIT_COLOURS.map((colour) => make("span", { class: "explorer-handles", style: `background:${colour}` }));
  const surface = make("div", {
    class: "explorer-rows explorer-surface", tabindex: "0", role: "application",
    "aria-label": "The ten intervals. The arrow keys move and stretch that of the chosen digit, with Shift by small steps; Home puts it back.",
  }, ...ROWS.map((digit) => make("div", {}, rows[digit])));
  const picker = choice({ legend: "digit", options: ROWS.map((digit) => [digit, String(digit)]), change: (digit) => put({ digit }) });
  const plot = mixturePlot(), prices = costBars(PRICES, Math.log(LENGTH / LEAST));
  const values = valueCells(["missed", "reverse"]);
  const note = make("p", { class: "explorer-note" });
  const chosen = make("p", { class: "explorer-line" });
  const from = slider({ label: "from", min: 0, max: LENGTH - LEAST, step: STEP, say: (z) => number(z, 1), input: startAt });
  const to = slider({ label: "to", min: LEAST, max: LENGTH, step: STEP, say: (z) => number(z, 1), input: endAt });

  // What a pointer has taken hold of: an end, or the whole, and how far from its start.
  let held = null;
  const grab = (event) => {
    const box = surface.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * ROWS.length);
    const z = ((event.clientX - box.left) / box.width) * LENGTH;
    put({ digit: ROWS[within(row, 0, ROWS.length - 1)] });
    const [start, end] = own();
    const outside = (REACH / box.width) * LENGTH, inside = Math.min(outside, (end - start) / 3);
    if (z > start - outside && z < start + inside) held = { act: startAt, off: z - start };
    else if (z > end - inside && z < end + outside) held = { act: endAt, off: z - end };
    else held = { act: moveTo, off: z > start && z < end ? z - start : (end - start) / 2 };
  };
  surface.addEventListener("pointerdown", grab);
  follow(surface, (right) => held.act(right * LENGTH - held.off), { hover: false });
  arrows(surface, (right, up, small) => {
    const step = small ? STEP : 5 * STEP;
    if (right) moveTo(own()[0] + step * right);
    else stretch((small ? STEP : 3 * STEP) * up);
  }, () => place(...ARRANGEMENTS["Side by side"](model.get("digit"))));

  function update() {
    const intervals = model.get("intervals"), digit = model.get("digit"), [start, end] = own();
    const cells = cellsOf(intervals), now = costsOf(intervals, cells);
    rows.forEach((bar, k) => {
      bar.style.left = `${((100 * intervals[k][0]) / LENGTH).toFixed(1)}%`;
      bar.style.width = `${((100 * (intervals[k][1] - intervals[k][0])) / LENGTH).toFixed(1)}%`;
      bar.classList.toggle("explorer-chosen", k === digit);
    });
    picker.update(digit);
    from.update(start);
    to.update(end);
    chosen.textContent = `The interval of the digit ${digit}`;
    prices.update(now, { mismatch: now.information });
    values.missed.textContent = `${number(100 * now.missed, 0)} %`;
    values.reverse.textContent = now.missed ? "infinite" : `${number(now.reverse, 2)} nats`;
    note.textContent = now.missed
      ? `No code reaches ${values.missed.textContent} of the prior. KL(q‖p) is finite all the same, and KL(p‖q) is infinite.`
      : now.mismatch < 0.005
        ? "The mixture is the prior."
        : "The mixture reaches all of the prior, and is too thin in some places and too thick in others.";
    plot.update(cells, note.textContent);
    say(`The digit ${digit} lies from ${number(start, 1)} to ${number(end, 1)}. Rate ${number(now.rate, 2)}, ` +
      `information ${number(now.information, 2)}, mismatch ${number(now.mismatch, 2)} nats. ${note.textContent}`);
  }
  const ticks = make("div", { class: "explorer-ticks", "aria-hidden": "true" }, ...[0, 2, 4, 6, 8, 10].map((tick) => make("span", {}, String(tick))));
  const arrangements = Object.entries(ARRANGEMENTS).map(([name, arrange]) =>
    button(name, () => put({ intervals: DIGIT_COLOURS.map((_, digit) => arrange(digit)) })));
  el.append(make("div", { class: "explorer-columns" },
    make("div", { class: "explorer-ten" }, picker.node, surface, plot.node, ticks, make("div", { class: "explorer-choice" }, ...arrangements)),
    make("div", { class: "explorer-side" }, prices.node,
      make("dl", { class: "explorer-table" }, make("dt", {}, "q misses, of p"), values.missed, make("dt", {}, "KL(p‖q)"), values.reverse),
      note, chosen, from.node, to.node)));
  for (const trait of ["intervals", "digit"]) model.on(`change:${trait}`, update);
  update();
}

export default { render };
