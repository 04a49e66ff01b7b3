"""The page of `dmcodec demo` as a Hugging Face Space."""

import os

from dmcodec.demo.serve import serve

if __name__ == "__main__":
    # A Space names the address that it listens on; at home it is this machine's own.
    serve(
        host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        max_seconds=30.0,
        on_ready=lambda address: print(f"ready at {address}", flush=True),  # noqa: T201 (a script)
    )
