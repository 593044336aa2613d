/** An error whose message tells the visitor what is wrong and what to do about it. */
export class ViewerError extends Error {
  constructor(
    /** What is wrong, in a few words. */
    readonly title: string,
    /** What to do. */
    readonly advice: string,
  ) {
    super(`${title}. ${advice}`);
    this.name = "ViewerError";
  }
}

const EXPORT_AGAIN = "Copy the exported folder again, whole, or write it anew with eugen-export.";

/** A scene file that does not hold what it should. */
export function damaged(file: string, problem: string): ViewerError {
  return new ViewerError(`${file} is damaged: ${problem}`, EXPORT_AGAIN);
}
