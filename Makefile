# `make` alone lists what can be made. The rules are in make.py, which Windows calls without make.
PYTHON ?= python3
TARGETS := book test quick lab check study install clean
.DEFAULT_GOAL := help
# One target after the other, so that what is about to happen is printed before it does.
.NOTPARALLEL:
.PHONY: help $(TARGETS)

help:
	@$(PYTHON) make.py

$(TARGETS):
	@$(PYTHON) make.py $@
