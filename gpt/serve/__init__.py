"""A server for the models of runs: an API that clients of OpenAI's speak, and a page (extra `serve`).

It is two processes: the front, which speaks HTTP, and the engine, which has the models. A request goes through these
files, from the outside in:

- front.py: the process that speaks HTTP; uvicorn does. __main__.py starts it. connections.py: who may hold one.
- guard.py: who may ask at all, and with how much: Host, Origin, the token, the size of a body.
- app.py: which address leads where, and how an error (errors.py) is answered.
- fields.py: the body's fields become a checked request. What hipgpt does not support is refused by name.
- texts.py: the request's texts are submitted, and read as they are written.
- engine_client.py: the engine, as the front knows it.
- channel.py: messages from one process to the other. messages.py defines them.
- engine.py: writes the texts of all models (model.py); outbox.py brings the tokens back.
- wording.py: tokens become text, up to a stop string.
- answers.py: the text becomes OpenAI's answer, whole or as a stream of events.

server.py is the beginning and the end: the address, the front as a child of the engine, the signals. runs.py has what
the page asks about runs, and page/ the page itself.
"""
