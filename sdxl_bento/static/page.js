() => {
  // Ctrl or Cmd with Enter draws, from wherever one is in the form.
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
    const button = document.querySelector('#sb-draw');
    if (button && button.offsetParent) { event.preventDefault(); button.click(); }
  });
}
