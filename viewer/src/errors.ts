/** An error whose message tells the user what is wrong and what to do about it. */
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

const EXPORT_AGAIN = "Copy the whole exported folder again, or export the scene again with eugen-export.";

/** A scene file with invalid content. */
export class DamagedFile extends ViewerError {}

/** The error for a scene file with invalid content. */
export function damaged(file: string, problem: string): DamagedFile {
  return new DamagedFile(`${file} is damaged: ${problem}`, EXPORT_AGAIN);
}
