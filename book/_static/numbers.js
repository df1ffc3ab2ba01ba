// The cards of marked numbers. The number is a link to its row, titled with the words of the card; the
// card shows them when a pointer rests on the number, when the keyboard reaches it, and on a tap.
(() => {
  const REST = 150; // milliseconds until a card appears below a pointer
  const LEAVE = 300; // and until it goes, in which a pointer may reach it

  const unfold = () => {
    // A row may lie in a folded table, which not every browser opens.
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const fold = row?.closest("details:not([open])");
    if (!fold) return;
    fold.open = true;
    row.scrollIntoView();
  };
  unfold();
  addEventListener("hashchange", unfold);

  if (!("popover" in HTMLElement.prototype)) return;

  const card = document.createElement("span");
  card.className = "number-card";
  card.popover = "manual";
  let shown = null; // the number whose card is in sight
  let before = null; // the one whose card was, when a finger came down
  let finger = false; // whether the last thing that pressed anything was a finger
  let quiet = false; // whether the keyboard comes back to a number whose card it has closed
  let timer;

  for (const number of document.querySelectorAll("a.number")) {
    // The browser's own tooltip would lie over the card; screen readers read the description.
    number.setAttribute("aria-description", number.title);
    // A formula is read, but is no name of a link.
    if (number.querySelector("math")) number.setAttribute("aria-label", number.textContent.trim());
    number.removeAttribute("title");
  }

  const later = (action, delay) => {
    clearTimeout(timer);
    timer = setTimeout(action, delay);
  };

  const hide = () => {
    clearTimeout(timer);
    if (!shown) return;
    card.hidePopover();
    card.remove();
    shown = null;
  };

  const place = () => {
    const edge = 8;
    const gap = 4;
    const { clientWidth, clientHeight } = document.documentElement;
    const at = shown.getClientRects()[0];
    const { width, height } = card.getBoundingClientRect();
    const left = Math.max(edge, Math.min(at.left, clientWidth - width - edge));
    const below = at.bottom + gap;
    const top = below + height <= clientHeight ? below : Math.max(edge, at.top - gap - height);
    card.style.left = `${left + scrollX}px`;
    card.style.top = `${top + scrollY}px`;
  };

  const show = (number) => {
    clearTimeout(timer);
    if (shown === number) return;
    hide();
    shown = number;
    const lines = number.getAttribute("aria-description").split(" · ");
    const row = document.createElement("a");
    row.href = number.getAttribute("href");
    const here = row.getAttribute("href").startsWith("#");
    row.textContent = here ? "Its row in the table of results" : "Its row in the evidence";
    card.replaceChildren(
      ...lines.map((line) => Object.assign(document.createElement("span"), { textContent: line })),
      row,
    );
    number.after(card); // where the keyboard and screen readers come to next
    card.showPopover();
    place();
  };

  const at = (event) => event.target.closest?.("a.number");
  const isFocused = () => [shown, card].some((one) => one?.contains(document.activeElement));

  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    const number = at(event);
    if (number?.contains(event.relatedTarget)) return;
    clearTimeout(timer);
    if (number && number !== shown) {
      if (!card.contains(document.activeElement)) later(() => show(number), REST);
    } else if (!number && !card.contains(event.target) && !isFocused()) later(hide, LEAVE);
  });

  document.addEventListener("focusin", (event) => {
    const number = at(event);
    if (number && !quiet) show(number);
    else if (!number && !card.contains(event.target)) hide();
  });

  document.addEventListener("pointerdown", (event) => {
    finger = event.pointerType === "touch";
    before = shown;
    if (at(event) !== shown && !card.contains(event.target)) hide();
  });

  document.addEventListener("click", (event) => {
    const number = at(event);
    if (!number || !finger) return;
    event.preventDefault();
    if (number === before) hide();
    else show(number);
  });

  // Before an explorer, which keeps its keys to itself.
  const onKey = (event) => {
    finger = false;
    if (event.key !== "Escape" || !shown) return;
    const number = shown;
    const inside = card.contains(document.activeElement);
    hide();
    if (!inside) return;
    quiet = true;
    number.focus();
    quiet = false;
  };
  document.addEventListener("keydown", onKey, true);

  addEventListener("hashchange", hide);
  addEventListener("resize", hide);
})();
