// Pages that are opened from the disk may not start workers, and the search of these pages is one.
// There this stands in for it: the worker's program runs in a frame that nobody sees.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      // What the program sends is meant for us, and not for its own window.
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = frame.contentDocument.createElement("script");
      this.program = new Promise((started) => {
        script.addEventListener("load", () => started(inside));
      });
      script.src = String(url);
      frame.contentDocument.body.append(script);
    }

    postMessage(data) {
      this.program.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
