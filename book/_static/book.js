/* What scrolls sideways, a wide table for one, must scroll from a keyboard too: it takes the focus while it overflows. */
(() => {
  const scrolling = ".bd-content :is(div.cell_output, div.cell_output > .output, pre, mjx-container)";
  const mark = () => {
    for (const part of document.querySelectorAll(scrolling)) {
      if (part.scrollWidth > part.clientWidth) part.setAttribute("tabindex", "0");
    }
  };
  for (const event of ["load", "resize"]) window.addEventListener(event, mark);
  document.addEventListener("toggle", mark, true);
})();
