# Short names for dev.py, which also works where there is no make.
.PHONY: app test check bench
app test check bench:
	python3 dev.py $@
