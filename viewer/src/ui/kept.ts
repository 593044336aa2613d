/** The integer from `least` to `most` that was kept for this visit, including reloads; `most` if there is none. */
export function kept(key: string, least: number, most: number): number {
  try {
    const value = Number(sessionStorage.getItem(key) ?? most);
    return Number.isInteger(value) && value >= least && value <= most ? value : most;
  } catch {
    return most;
  }
}

/** Keep a number for this visit. */
export function keep(key: string, value: number): void {
  try {
    sessionStorage.setItem(key, String(value));
  } catch {
    // Without storage, the value is lost when the page is left.
  }
}
