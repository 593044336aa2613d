/** Whether a key press is not for the page: a combination of the browser's, or input for the focused form element. */
export function isTaken(event: KeyboardEvent): boolean {
  // AltGr, which some keyboards need for brackets, counts as Control and Alt on Windows.
  const combined = event.ctrlKey || event.metaKey || event.altKey;
  if (combined && !event.getModifierState("AltGraph")) return true;
  const { target } = event;
  if (target instanceof HTMLSelectElement) return true;
  if (!(target instanceof HTMLInputElement) || target.type === "checkbox") return false;
  // Radio buttons and sliders keep the focus after a click, and use only these keys.
  return !["radio", "range"].includes(target.type) || /^(Arrow|Home$|End$|Page)/.test(event.key);
}

const US_SIGNS: Readonly<Partial<Record<string, string>>> = { BracketLeft: "[", BracketRight: "]" };

/** The letter or sign on a key, wherever it is; for keyboards without Latin letters, that of a US keyboard at its position. */
export function label(event: KeyboardEvent): string {
  if (/^[!-~]$/.test(event.key)) return event.key.toLowerCase();
  return US_SIGNS[event.code] ?? /^Key(\w)$/.exec(event.code)?.[1].toLowerCase() ?? "";
}
