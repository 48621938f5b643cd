// The theme puts a navigation with a button to copy on each block of code: each gets a name of its own.
function name_copies() {
  document.querySelectorAll(".md-code__nav").forEach((nav, number) => {
    nav.setAttribute("aria-label", `Code ${number + 1}`);
  });
}
new MutationObserver(name_copies).observe(document.body, { childList: true, subtree: true });
name_copies();
