// Pairs are judged by the keys of a study's own page: 1 or left arrow, 0, and 2 or right arrow.
() => document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, select, [role=slider], [role=tab], [role=listbox]")) return;
  const choice = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 0: "tie" }[event.key];
  const button = choice && document.querySelector(`#vote-${choice}`);
  if (button && button.offsetParent && !button.disabled) {
    event.preventDefault();
    button.click();
  }
});
