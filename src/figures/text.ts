import type { Figure } from "./figure";

/** One line for places that draw nothing (text/plain): the title, the note and what is in the figure. Plain text: markup is taken off. */
export function toText({ data, layout }: Figure): string {
  const { title } = layout as { title?: string | { text?: string; subtitle?: { text?: string } } };
  const words = typeof title === "string" ? [title] : [title?.text, title?.subtitle?.text];
  const counts = new Map<string, number>();
  for (const trace of data as { type?: string; marker?: { opacity?: unknown } }[]) {
    if (trace.marker?.opacity === 0) continue; // only keeps a panel's axes drawn
    const type = trace.type ?? "scatter";
    counts.set(type, (counts.get(type) ?? 0) + 1);
  }
  const images = (layout as { images?: unknown[] }).images?.length ?? 0;
  if (images > 0) counts.set("picture", images);
  const parts = [...counts].map(([type, n]) => `${n} ${type}${n > 1 ? "s" : ""}`).join(", ");
  return `[figure] ${
    words
      .filter(Boolean)
      .map((text) => plain(text as string))
      .join(" · ") || "untitled"
  }${parts ? ` (${parts})` : ""}`;
}

const ENTITIES: Record<string, string> = { lt: "<", gt: ">", quot: '"', amp: "&", "#36": "$" };

function plain(text: string): string {
  return text.replace(/<[^>]*>/g, "").replace(/&(lt|gt|quot|amp|#36);/g, (_, name: string) => ENTITIES[name]);
}
