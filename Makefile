.DEFAULT_GOAL := help
.PHONY: help run demo logs stop reset test chaos check deps

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## install what is missing, build, start everything, put demo data in
	@deploy/local/run

demo: ## walk through the whole story over HTTP, against what runs
	@deploy/local/demo

logs: ## follow all logs
	@deploy/local/logs

stop: ## stop what `make run` started; the data stays
	@deploy/local/stop

reset: stop ## stop, and wipe the data
	@deploy/local/stack reset

test: ## run every test, against real services of its own
	@deploy/local/test

chaos: ## faults by seed, under load: SEEDS=50 for 1 to 50, SEED=7 for one, REPORT=file
	@CHAOS_REPORT=$(REPORT) deploy/local/chaos $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),5))

check: ## format, lints, documentation, dependencies
	@deploy/local/check

deps: ## install what is missing, and nothing else
	@deploy/local/install
