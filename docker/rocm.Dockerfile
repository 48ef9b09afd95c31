# hipgpt for an AMD GPU. In a checkout: docker build -t hipgpt-rocm -f docker/rocm.Dockerfile .
FROM ubuntu:24.04

# AMD's packages of this version. CuPy's project checks its wheel on 7.0.2; 7.1.1 and 7.2.4 have the same libraries.
ARG ROCM=7.0.2
ARG DEBIAN_FRONTEND=noninteractive
ADD --chmod=644 https://repo.radeon.com/rocm/rocm.gpg.key /etc/apt/keyrings/rocm.asc
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3-venv \
    && echo "deb [arch=amd64 signed-by=/etc/apt/keyrings/rocm.asc] https://repo.radeon.com/rocm/apt/$ROCM noble main" \
        >/etc/apt/sources.list.d/rocm.list \
    && printf 'Package: *\nPin: release o=repo.radeon.com\nPin-Priority: 600\n' >/etc/apt/preferences.d/rocm \
    && apt-get update \
    && apt-get install -y --no-install-recommends g++ hipcc hip-dev hip-runtime-amd rocm-device-libs hipblas hipblaslt \
        rocblas rocsolver rocfft hipfft hipsparse hiprand roctracer rccl \
    && rm -rf /var/lib/apt/lists/*
ENV ROCM_HOME=/opt/rocm LD_LIBRARY_PATH=/opt/rocm/lib PATH=/opt/hipgpt/bin:/opt/rocm/bin:$PATH

COPY setup.py pyproject.toml README.md LICENSE /src/
COPY gpt /src/gpt
COPY kernels /src/kernels
COPY data /src/data
RUN python3 -m venv /opt/hipgpt && /opt/hipgpt/bin/pip install --no-cache-dir "/src[rocm]"

# Compiled kernels go to /cache, and runs to /workspace: any user may write to both.
RUN mkdir -m 1777 /cache /workspace
ENV HOME=/cache
USER 1000
WORKDIR /workspace
ENTRYPOINT ["hipgpt"]
CMD ["doctor"]
