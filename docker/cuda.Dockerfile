# hipgpt for an NVIDIA GPU. In a checkout: docker build -t hipgpt-cuda -f docker/cuda.Dockerfile .
FROM python:3.12-slim-bookworm

COPY setup.py pyproject.toml README.md LICENSE /src/
COPY gpt /src/gpt
COPY kernels /src/kernels
COPY data /src/data
# cuda12 for a driver older than 580. CUDA's libraries come with it from PyPI.
ARG EXTRA=cuda13
RUN pip install --no-cache-dir "/src[$EXTRA]"

# Compiled kernels go to /cache, and runs to /workspace: any user may write to both.
RUN mkdir -m 1777 /cache /workspace
ENV HOME=/cache
USER 1000
WORKDIR /workspace
ENTRYPOINT ["hipgpt"]
CMD ["doctor"]
