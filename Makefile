.DEFAULT_GOAL := help
.PHONY: help run demo logs stop reset test chaos abuse bench check deps

help: ## this list
	@echo 'New here? `make run`, then `make demo`; README.md has requests to try.'
	@echo 'Changing something? docs/CONTRIBUTING.md, then `make check` and `make test`. Operating it? docs/operating.md.'
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## install what is missing, build, start everything, add demo data
	@deploy/local/run

demo: ## walk through all features over HTTP and check every answer (needs `make run`)
	@deploy/local/demo

logs: ## follow the logs of everything that `make run` started
	@deploy/local/logs

stop: ## stop everything that `make run` started; keep the data
	@deploy/local/stop

reset: stop ## stop, and delete the data
	@deploy/local/stack reset

test: ## run every test against a private Kafka, MySQL and Redis
	@deploy/local/test

chaos: ## inject faults by seed under load: SEEDS=50 (1 to 50), SEED=7 (one), REPORT=file
	@CHAOS_REPORT=$(REPORT) deploy/local/chaos $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),5))

abuse: ## attack a private system for two minutes beside normal users; fail above stated bounds
	@deploy/local/abuse

bench: ## measure release builds: MEASURE="registrations" or MEASURE="media --rounds 5" (both)
	@deploy/local/bench $(MEASURE)

check: ## check format, lints, documentation, module cycles, dependencies
	@deploy/local/check

deps: ## install what is missing, nothing else
	@deploy/local/install
