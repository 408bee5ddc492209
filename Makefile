# Two commands matter: `make demo` and `make test`. What they do stands in scripts/.
# Works from any folder: make -C /path/to/pollen demo

ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
PYTHON := $(ROOT)/.venv/bin/python

.PHONY: help demo test test-slow test-faults test-arm bench clean

help:
	@echo "make demo    a fleet learns from this machine's sensors, live; options: make demo ARGS=\"--minutes 1 --devices 4\""
	@echo "make test    ruff, mypy --strict and pytest, with everything they need"
	@echo "make test-slow   the tests that take minutes: a real Flower SuperLink, 200 kill -9 of a device, its 24 hours in a quarter of one"
	@echo "make test-faults   fifty devices train while broker, gateway, server, network, disks and clocks fail; ten minutes, root"
	@echo "make test-arm    emulated ARM processors train, and learn what this machine learns: ten minutes, 400 MB; no root needed"
	@echo "make bench   the measurements of benchmarks/, as ratios"
	@echo "make clean   remove what was installed and cached here; runs/ stays"

demo:
	@$(ROOT)/scripts/environment .venv demo
	@cd $(ROOT) && exec .venv/bin/python -m pollen.demo.command $(ARGS)

test:
	@$(ROOT)/scripts/environment .venv dev
	@$(ROOT)/scripts/environment-tflite
	@$(ROOT)/scripts/test-tools
	@$(ROOT)/scripts/check $(ARGS)

test-slow:
	@$(ROOT)/scripts/environment .venv dev
	@$(ROOT)/scripts/environment-tflite
	@cd $(ROOT) && $(PYTHON) -m pytest -m slow $(ARGS)

test-faults:
	@$(ROOT)/scripts/environment .venv dev
	@$(ROOT)/scripts/test-tools
	@cd $(ROOT) && $(PYTHON) -m pytest -m slow tests/faults $(ARGS)

test-arm:
	@$(ROOT)/scripts/environment .venv dev
	@$(ROOT)/scripts/environment-tflite
	@cd $(ROOT) && $(PYTHON) -m pytest -m slow tests/arm $(ARGS)

bench:
	@$(ROOT)/scripts/environment .venv dev
	@$(ROOT)/scripts/environment-tflite
	@cd $(ROOT) && $(PYTHON) -m benchmarks.gateways
	@cd $(ROOT) && $(PYTHON) -m benchmarks.superlink
	@cd $(ROOT) && $(PYTHON) -m benchmarks.reconnect_storm
	@cd $(ROOT) && $(PYTHON) -m benchmarks.hostile_load
	@cd $(ROOT) && $(PYTHON) -m benchmarks.merge_speed
	@cd $(ROOT) && $(PYTHON) -m benchmarks.server_memory
	@cd $(ROOT) && $(PYTHON) -m benchmarks.adaptive
	@cd $(ROOT) && $(PYTHON) -m benchmarks.device_memory --tflite .venv-tflite/bin/python
	@cd $(ROOT) && $(PYTHON) -m benchmarks.training_step
	@cd $(ROOT) && $(PYTHON) -m benchmarks.nab
	@cd $(ROOT) && $(PYTHON) -m benchmarks.motionsense
	@cd $(ROOT) && $(PYTHON) -m benchmarks.upload_cost
	@cd $(ROOT) && $(PYTHON) -m benchmarks.device_cost
	@cd $(ROOT) && $(PYTHON) -m benchmarks.device_writes
	@cd $(ROOT) && $(PYTHON) -m benchmarks.sampling_jitter

clean:
	rm -rf $(ROOT)/.venv $(ROOT)/.venv-tflite $(ROOT)/.cache $(ROOT)/build $(ROOT)/*.egg-info \
	    $(ROOT)/.mypy_cache $(ROOT)/.ruff_cache $(ROOT)/.pytest_cache $(ROOT)/.hypothesis
	find $(ROOT) -name __pycache__ -type d -not -path '*/.git/*' -prune -exec rm -rf {} +
