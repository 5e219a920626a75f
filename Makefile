# samlad - libc and libm, optional OpenMP, nothing else.
#
#   make            the library libsamlad.a and the command samlad
#   make test       build and run every test; ends with "N passed, N failed"
#   make demo       the main job on synthetic trays with the weights that ship (SEED=1)
#   make weights    the official weights (WEIGHTS="sam_vit_b dinov2_vits14": only these)
#   make asan       the tests under the address and undefined-behaviour sanitizers
#   PLAIN=1         leave fast/ out: every routine is its formula, as in tensor.c and the chapters. It builds in
#                   build-plain, takes some 20 to 40 times as long, and works with all goals (make test PLAIN=1)
#   make install    PREFIX=/usr/local: command, library, headers, man page, weights (with the same options as make);
#                   make uninstall removes them
#   make clean      remove what make has built
#   OPENMP=0        one thread, no OpenMP; ARCH=  for a portable binary; CC=clang works too, with its libomp or OPENMP=0
#                   (OBJCOPY= if it is not beside the compiler)
# make compiles on every core; -j1 uses one.

# A -j of the command line overrides this one. A make started by another make shares its jobs. Several goals
# (make clean all, make demo test) are made one after the other.
ifeq ($(MAKELEVEL)$(word 2,$(MAKECMDGOALS)),0)
MAKEFLAGS += --jobs=$(shell nproc 2>/dev/null || echo 2)
endif

# make itself sets CC to cc, so ?= would never apply.
ifeq ($(origin CC),default)
CC       = gcc
endif
OBJCOPY ?= $(shell $(CC) -print-prog-name=objcopy)
# With -flto in CFLAGS, gcc needs this option to make machine code of whole.o. Other compilers do not know it.
NOLTO    = $(shell $(CC) -flinker-output=nolto-rel -E -x c /dev/null >/dev/null 2>&1 && echo -flinker-output=nolto-rel)
OPENMP  ?= 1
ARCH    ?= -march=native
PREFIX  ?= /usr/local
PLAIN   ?= 0
ifneq ($(filter-out 0,$(PLAIN)),)
BUILD   ?= build-plain
else
BUILD   ?= build
endif
CFLAGS  ?= -O3 -g
SAN     ?=
SEED    ?= 1
WEIGHTS ?=
DEMO_OUT ?= demo-out

# -ffp-contract=off: compilers must not fuse a product and a sum. PIL's integers and torch's last digits depend on it.
WARN    = -Wall -Wextra -Wshadow -Werror
# 32-bit x86 computes with SSE, not with x87, whose numbers are wider than float until they happen to leave a register:
# then one thread and several have different bits. FPMATH= for a processor without SSE2; its results agree within rounding.
# On S/390 C11 makes gcc compute floats as doubles, although the machine has floats; -fexcess-precision=fast takes those.
ifeq ($(origin FPMATH),undefined)
MACROS := $(shell $(CC) -std=c11 $(CFLAGS) $(ARCH) -E -dM -x c /dev/null 2>/dev/null | sed -n 's/^.define \(__i386__\|__FLT_EVAL_METHOD__\) /\1=/p')
FPMATH := $(if $(filter __i386__=%,$(MACROS)),-msse2 -mfpmath=sse,$(if $(filter __FLT_EVAL_METHOD__=1,$(MACROS)),-fexcess-precision=fast))
endif
ALL     = -std=c11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 $(WARN) $(CFLAGS) $(ARCH) $(FPMATH) -ffp-contract=off -fno-math-errno -fno-trapping-math $(SAN) -I.
LIBS    = -lm
# X.su beside each X.o: the stack that each function takes, for tests/test_frames.sh.
FRAMES := $(if $(findstring Free Software,$(shell $(CC) --version 2>/dev/null)),-fstack-usage)
ifneq ($(OPENMP),0)
ALL    += -fopenmp
else
ALL    += -Wno-unknown-pragmas
endif

# The fast build compiles each top-level file with this option. fast/replaces.h renames the functions that fast/ replaces
# to plain_*.
ifneq ($(filter-out 0,$(PLAIN)),)
RENAME  =
FAST    =
ALL    += -DSAMLAD_PLAIN
else
RENAME  = $(if $(findstring /,$*),,-DCOMPILES_$* -include fast/replaces.h)
FAST    = fast
endif

# The command is linked separately. It and the tests see all names of the rest (all.a); users see those of samlad.h.
CLI     = $(wildcard command/*.c)
ROOMS   = io $(FAST) load encoders bank library report eval
SRC     = $(wildcard *.c) $(foreach room,$(ROOMS),$(wildcard $(room)/*.c))
OBJ     = $(SRC:%.c=$(BUILD)/%.o)
LIB     = $(BUILD)/all.a
# These tests check functions that only fast/ has. PLAIN=1 leaves them out.
FAST_TESTS = test_planar test_simd test_bf16_kernels test_sam_fast
ifneq ($(filter-out 0,$(PLAIN)),)
LEFT_OUT = $(FAST_TESTS)
endif
TESTS   = $(filter-out $(LEFT_OUT:%=$(BUILD)/tests/%),$(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c)))

.PHONY: all lib test demo weights asan clean install uninstall FORCE
.SECONDARY:

all: samlad libsamlad.a
lib: libsamlad.a

# A change of compiler or flags rebuilds everything.
$(BUILD)/flags: FORCE
	@mkdir -p $(BUILD)
	@echo '$(CC) $(ALL)' | cmp -s - $@ || echo '$(CC) $(ALL)' > $@

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(ALL) $(FRAMES) $(RENAME) -MMD -MP -c $< -o $@

$(LIB): $(OBJ)
	rm -f $@
	$(AR) rcs $@ $(OBJ)

# One object that exports only samlad.h's names, because a program may define its own add() or dot().
$(BUILD)/libsamlad.a: $(OBJ)
	$(CC) $(CFLAGS) $(ARCH) $(NOLTO) -r -nostdlib $(OBJ) -o $(BUILD)/whole.o
	$(OBJCOPY) --wildcard --keep-global-symbol='samlad_*' $(BUILD)/whole.o
	rm -f $@
	$(AR) rcs $@ $(BUILD)/whole.o

# Several builds share these two names, so the contents are compared, not the dates.
libsamlad.a: $(BUILD)/libsamlad.a FORCE
	@cmp -s $< $@ || cp $< $@

samlad: $(BUILD)/samlad FORCE
	@cmp -s $< $@ || cp $< $@

$(BUILD)/samlad: $(CLI:%.c=$(BUILD)/%.o) $(LIB)
	$(CC) $(ALL) $^ $(LIBS) -o $@

$(BUILD)/tests/%: tests/%.c tests/test.h $(LIB)
	@mkdir -p $(@D)
	$(CC) $(ALL) -MMD -MP $< $(LIB) $(LIBS) -o $@

# The command in which test_failing.sh fails one allocation.
ALLOCATE = malloc calloc realloc aligned_alloc strdup strndup realpath open_memstream opendir fopen64 nftw64 mmap64 fopen nftw mmap
$(BUILD)/tests/samlad_failing: tests/fail_nth.c $(CLI:%.c=$(BUILD)/%.o) $(LIB)
	@mkdir -p $(@D)
	$(CC) $(ALL) $^ $(LIBS) $(ALLOCATE:%=-Wl,--wrap=%) -o $@

test: $(TESTS) $(BUILD)/tests/samlad_failing $(BUILD)/samlad $(BUILD)/libsamlad.a
	@sh tests/run.sh $(BUILD) $(LEFT_OUT)

demo: samlad
	@sh tests/demo.sh ./samlad $(SEED) $(DEMO_OUT)

weights:
	@tools/get_weights.sh $(WEIGHTS)

asan:
	$(MAKE) test BUILD=$(BUILD)-asan CFLAGS='-O1 -g' SAN='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer'

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/samlad/weights
	install -m 755 samlad $(DESTDIR)$(PREFIX)/bin/samlad
	install -m 644 libsamlad.a $(DESTDIR)$(PREFIX)/lib/libsamlad.a
	@# one header, because an error.h in /usr/local/include would hide the C library's
	sed -e '/^#include "io.error.h"/r io/error.h' -e '/^#include "io.error.h"/d' samlad.h >$(DESTDIR)$(PREFIX)/include/samlad.h
	chmod 644 $(DESTDIR)$(PREFIX)/include/samlad.h
	install -m 644 samlad.1 $(DESTDIR)$(PREFIX)/share/man/man1/samlad.1
	install -m 644 weights/*.safetensors $(DESTDIR)$(PREFIX)/share/samlad/weights/

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/samlad $(DESTDIR)$(PREFIX)/lib/libsamlad.a $(DESTDIR)$(PREFIX)/include/samlad.h $(DESTDIR)$(PREFIX)/share/man/man1/samlad.1
	rm -rf $(DESTDIR)$(PREFIX)/share/samlad

clean:
	rm -rf $(BUILD) $(BUILD)-asan build-plain build-plain-asan samlad libsamlad.a libvit.a libsam.a
	@sh tests/demo.sh --clean $(DEMO_OUT)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)

# ---- parts of the library, and the examples ------------------------------------------------------------------------
#   make vit        libvit.a: DINOv2 and timm's ViTs alone (vit.h), with the readers of pictures and weights
#   make sam-lib    libsam.a: Segment Anything alone (sam.h, amg.h)
# Both export all names of the headers in this tree (-I.); libsamlad.a exports only samlad.h's. A chapter's fast forms in
# fast/ begin with the chapter's name.
.PHONY: vit sam-lib examples

PART_SRC = $(wildcard io/*.c) tensor.c $(if $(FAST),$(filter-out fast/featup_% fast/sam_% fast/amm_%,$(wildcard fast/*.c)))
VIT_SRC  = $(PART_SRC) $(wildcard load/foreign*.c) load/vit_load.c vit.c
SAM_SRC  = $(PART_SRC) $(wildcard load/foreign*.c load/sam_*.c load/amg_*.c encoders/*.c) sam.c amg.c $(if $(FAST),$(wildcard fast/sam_*.c))
EXAMPLES = $(patsubst %.c,$(BUILD)/%,$(wildcard examples/*.c))

$(BUILD)/libvit.a: $(VIT_SRC:%.c=$(BUILD)/%.o)
$(BUILD)/libsam.a: $(SAM_SRC:%.c=$(BUILD)/%.o)
$(BUILD)/libvit.a $(BUILD)/libsam.a:
	rm -f $@
	$(AR) rcs $@ $^

vit: libvit.a
sam-lib: libsam.a
libvit.a libsam.a: %.a: $(BUILD)/%.a FORCE
	@cmp -s $< $@ || cp $< $@

# The libraries of each example; its head names them.
$(BUILD)/examples/pca: $(BUILD)/libvit.a
$(BUILD)/examples/point: $(BUILD)/libsam.a
$(BUILD)/examples/detect: $(BUILD)/libsamlad.a $(BUILD)/libvit.a
$(BUILD)/examples/%: examples/%.c
	@mkdir -p $(@D)
	$(CC) $(ALL) -MMD -MP $< $(filter %.a,$^) $(LIBS) -o $@
examples: $(EXAMPLES)
test: $(EXAMPLES)
