# What a user writes in a variable reaches the command as it is, in one word of the shell.
# a $ in it is no make variable
$(foreach name,PARAMS RUN RUNS SET Q EXAM METRIC DIR WHEELS SHEET,$(eval override $(name) := $$(value $(name))))
# a line end would end the shell's command, so it stands there as a variable of the shell
define newline


endef
export newline
quoted = '$(subst $(newline),'"$$newline"',$(subst ','\'',$(1)))'
# a misspelt variable would be ignored, and another job started than the one meant
KNOWN = PARAMS RUN RUNS SET FORCE YES METRIC Q EXAM DRILLS DIR WHEELS SHEET FOR FOR_PYTHON FOR_PLATFORM PYTHON
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
unknown := $(filter-out $(KNOWN),$(given))
$(if $(unknown),$(error unknown variable $(unknown); expected some of $(KNOWN). `make help` says what they do))
