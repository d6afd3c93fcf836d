/** Functions of objects that are not ours, replaced for a while. */
export class Patches {
  private readonly patches: { target: object; key: string; value: unknown; before?: PropertyDescriptor }[] = [];

  /** Plans a replacement; `apply` makes it. */
  replace(target: object, key: string, value: unknown): void {
    this.patches.push({ target, key, value });
  }

  apply(): void {
    for (const patch of this.patches) {
      patch.before = Object.getOwnPropertyDescriptor(patch.target, patch.key);
      Object.defineProperty(patch.target, patch.key, { value: patch.value, configurable: true, writable: true });
    }
  }

  /** Puts back what was there. */
  revert(): void {
    for (const { target, key, before } of [...this.patches].reverse()) {
      if (before) Object.defineProperty(target, key, before);
      else Reflect.deleteProperty(target, key);
    }
  }
}
