{# What is shown when pointed at is a <title>, so nothing is lost without this script; with it, tips come at once. #}
const tip = document.getElementById('tip');
for (const title of document.querySelectorAll('svg title')) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
addEventListener('pointermove', event => {
  const mark = event.target.closest('[data-tip]');
  tip.style.opacity = mark ? 1 : 0;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.min(event.clientX + 14, innerWidth - box.width - 8) + 'px';
  tip.style.top = Math.max(event.clientY - box.height - 12, 8) + 'px';
});
