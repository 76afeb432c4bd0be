/* Runs a model on images and prints the outputs' bits, on an emulated MPS2 board: no C library, no files.
 *
 * The compiler is given the folder of model.h and images.h. */
#include "model.h"

#include "images.h" /* IMAGE_COUNT and images */

static void semihost(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void print_word(uint32_t word) {
  char text[10] = "00000000\n";
  for (int i = 7; i >= 0; --i, word >>= 4) text[i] = "0123456789abcdef"[word & 15];
  semihost(4, text);
}

static volatile uint32_t *const systick = (uint32_t *)0xE000E010u; /* control, reload, current */

__attribute__((noinline)) static void run(void) {
  static model_scratch scratch;
  systick[1] = 0xFFFFFFu;
  systick[2] = 0;
  systick[0] = 5;
  uint32_t ticks = 0;
  for (int i = 0; i < IMAGE_COUNT; ++i) {
    float output[MODEL_OUTPUT_SIZE];
    uint32_t words[MODEL_OUTPUT_SIZE];
    const uint32_t before = systick[2];
    model_run(images[i], output, &scratch);
    ticks = (before - systick[2]) & 0xFFFFFFu;
    memcpy(words, output, sizeof words);
    for (int j = 0; j < MODEL_OUTPUT_SIZE; ++j) print_word(words[j]);
  }
  print_word(ticks);
}

void start(void) {
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* the floating-point unit */
  __asm__ volatile("dsb\n isb" ::: "memory");
  run();
  semihost(0x18, (void *)0x20026); /* exit */
}

static void fault(void) { semihost(0x18, (void *)0x20023); }

__attribute__((section(".vectors"), used)) static void (*const vectors[4])(void) = {
    (void (*)(void))0x20080000u, start, fault, fault};
