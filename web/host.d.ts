// What these scripts use of ComfyUI's front end, for `// @ts-check`. The browser never loads it.

interface ComfyWidget {
  name: string;
  value: unknown;
  label?: string;
  hidden?: boolean;
  advanced?: boolean;
  serialize?: boolean;
  options?: { advanced?: boolean; values?: unknown };
  callback?: (...values: unknown[]) => unknown;
  onRemove?: () => void;
}

interface ComfyInput {
  name: string;
  link?: unknown;
  widget?: { name: string };
}

interface ComfyNode {
  id: string | number;
  subgraph?: ComfyGraph;
  comfyClass?: string;
  title: string;
  graph?: ComfyGraph;
  pos: [number, number];
  size: [number, number];
  properties: Record<string, unknown>;
  showAdvanced?: boolean;
  widgets?: ComfyWidget[];
  inputs?: ComfyInput[];
  addCustomWidget(widget: ComfyWidget): ComfyWidget;
  addDOMWidget(name: string, type: string, element: HTMLElement, options: object): ComfyWidget;
  computeSize(): [number, number];
  setSize(size: [number, number]): void;
  onConfigure?: (...values: unknown[]) => void;
  onExecuted?: (output: any) => void;
  getOutputNodes(slot: number): ComfyNode[] | null;
  getInputNode(slot: number): ComfyNode | null;
  getInputLink(slot: number): { origin_slot: number } | null;
  connect(slot: number, target: ComfyNode, targetSlot: number): unknown;
  /** Ours: see open_settings.js. */
  showRunChoices?: (run: any) => void;
}

interface ComfyExtension {
  name: string;
  nodeCreated?(node: ComfyNode): void;
}

interface ComfyGraph {
  id: string;
  nodes: ComfyNode[];
  add(node: ComfyNode): void;
  setDirtyCanvas(foreground: boolean): void;
}

declare const LiteGraph: { createNode(type: string): ComfyNode };

interface ComfyToast {
  severity: "success" | "info" | "warn" | "error";
  summary: string;
  detail: string;
  life: number;
}

interface ComfyChangeTracker {
  captureCanvasState?(): void;
  checkState?(): void;
}

declare module "*/scripts/app.js" {
  export const app: {
    registerExtension(extension: ComfyExtension): void;
    queuePrompt(number: number): Promise<boolean>;
    canvas: {
      selected_nodes?: Record<string, ComfyNode>;
      processMouseDown(event: PointerEvent): void;
      processMouseWheel(event: WheelEvent): void;
    };
    graph?: ComfyGraph;
    rootGraph?: ComfyGraph;
    extensionManager: {
      setting: { get(id: string): unknown };
      toast: { add(message: ComfyToast): void };
      workflow?: { activeWorkflow?: { changeTracker?: ComfyChangeTracker } };
    };
  };
}

declare module "*/scripts/api.js" {
  export const api: {
    apiURL(route: string): string;
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
    addEventListener(name: string, listener: (event: CustomEvent) => void): void;
    removeEventListener(name: string, listener: (event: CustomEvent) => void): void;
    getCustomNodesI18n(): Promise<Record<string, any>>;
  };
}
