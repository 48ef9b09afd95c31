"""A server for the models of runs: an API that clients of OpenAI's speak, and a page (extra `serve`).

A request goes through these files, from the outside in:

- server.py: the sockets, the signals, the end. uvicorn speaks HTTP.
- guard.py: who may ask at all, and with how much: Host, Origin, the token, the size of a body.
- app.py: which address leads where, and how an error (errors.py) is answered.
- fields.py: the body's fields become a checked request. What hipgpt does not support is refused by name.
- texts.py: the request's texts are submitted, and read as they are written.
- engine.py: one thread writes the texts of all models (model.py); listening.py brings the tokens back to the loop.
- wording.py: tokens become text, up to a stop string.
- answers.py: the text becomes OpenAI's answer, whole or as a stream of events.

runs.py has what the page asks about runs, and page/ the page itself.
"""
