# Everything of the lock, and the workflow in /loraudit. Written, not built: no container runtime was
# at hand where the project was made.
#   docker build --tag loraudit .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/study" loraudit
# The second line runs the workflow in the current folder; docs/cluster.md has Apptainer's.
FROM python:3.11-slim

COPY requirements.lock /loraudit/
RUN pip install --no-cache-dir --requirement /loraudit/requirements.lock

COPY . /loraudit
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable /loraudit

# Caches of any user, who may have no folder of his own.
ENV HOME=/tmp
WORKDIR /study
CMD ["snakemake", "--snakefile", "/loraudit/Snakefile", "--cores", "all"]
