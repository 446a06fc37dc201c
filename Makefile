# Everything sets itself up: each target first builds .venv from pyproject.toml and constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo docs wheel test test-slow fuzz backends spoken-digits war-and-peace mutants bench check format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[all,dev]'
	touch $@

demo: $(STAMP)  ## train, prune, fine-tune and measure on generated data; report and picture land in demo/
	$(BIN)/reprune demo --out demo

test: $(STAMP)  ## run the tests, on all cores
	$(BIN)/pytest -n auto --dist loadfile

test-slow: $(STAMP)  ## run the tests that take minutes
	$(BIN)/pytest -m slow

fuzz: $(STAMP)  ## thousands of random models and plans against the oracle
	REPRUNE_FUZZ=$${REPRUNE_FUZZ:-5000} $(BIN)/pytest tests/torch/tracing/test_random_models.py tests/torch/tracing/test_random_streams.py --timeout 0
	REPRUNE_FUZZ=$${REPRUNE_FUZZ:-2000} $(BIN)/pytest tests/keras/tracing/test_random_models.py --timeout 0

backends: $(STAMP)  ## the contract of Keras models on each backend: TensorFlow, PyTorch, and JAX, which is installed for it
	$(BIN)/pip install -q 'jax>=0.5'
	for backend in tensorflow torch jax; do KERAS_BACKEND=$$backend $(BIN)/pytest tests/keras/test_contract.py || exit 1; done
	$(BIN)/pytest tests/keras/test_backends.py -k two_devices

REPRUNE_DATA ?= ../shared/data
DIGITS = $(REPRUNE_DATA)/spoken_digits_yt8m
SPOKEN = $(BIN)/reprune train youtube8m --train '$(DIGITS)/train*.tfrecord' --validate '$(DIGITS)/test00.tfrecord' \
	--features audio:128 --classes 16 --hidden 128 --batch-size 32 --learning-rate 3e-3 --epochs 15
spoken-digits: $(STAMP)  ## the recipe on spoken digits ($$REPRUNE_DATA), at two ratios, softly, and in Keras; lands in out/
	$(SPOKEN) --ratio 0.5 --out out/digits-50 --resume
	$(SPOKEN) --ratio 0.75 --out out/digits-75 --resume
	$(SPOKEN) --ratio 0.5 --schedule soft:200 --out out/digits-soft --resume
	$(SPOKEN) --ratio 0.5 --framework keras --out out/digits-keras --resume

WORDS = $(REPRUNE_DATA)/war_and_peace/wap
NOVEL = $(BIN)/reprune train language-model --train $(WORDS).train.txt.gz --valid $(WORDS).valid.txt.gz \
	--test $(WORDS).test.txt.gz --preset small --hidden 64 --vocabulary 1000 --epochs 3 --finetune-epochs 1
war-and-peace: $(STAMP)  ## the language-model recipe on War and Peace ($$REPRUNE_DATA), small; lands in out/
	$(NOVEL) --out out/novel-reconstruct --resume
	$(NOVEL) --method iss-gm --dense out/novel-reconstruct --out out/novel-iss-gm --resume
	$(NOVEL) --method neuron-selection --out out/novel-neuron-selection --resume
	$(NOVEL) --framework keras --out out/novel-keras --resume

mutants: $(STAMP)  ## change what differs from main in small ways, and list the changes that no test notices
	$(BIN)/python benchmarks/mutants.py

bench: $(STAMP)  ## the speed of pruned models beside what their MACs promise
	$(BIN)/python benchmarks/deployment.py

docs: $(STAMP)  ## build the documentation site into site/, tutorials executed; a broken link is an error
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	PATH="$(CURDIR)/$(BIN):$$PATH" TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/mkdocs build --strict

wheel: $(STAMP)  ## build the wheel and the source archive into dist/, and look at what is in them
	rm -rf dist
	$(BIN)/python -m build -q
	$(BIN)/python tests/docs/archives.py dist

check: $(STAMP)  ## lint, format, types, import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and every build output
	rm -rf $(VENV) build dist demo site .pytest_cache .mypy_cache .ruff_cache .hypothesis
