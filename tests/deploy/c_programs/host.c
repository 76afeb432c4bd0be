/* Runs a model on the images of standard input, in memory full of what an earlier call might have left there. */
#include "model.h"

#include <stdio.h>

int main(void) {
  static INPUT_TYPE input[MODEL_INPUT_SIZE];
  static model_scratch scratch;
  static float output[MODEL_OUTPUT_SIZE];
  while (fread(input, sizeof input, 1, stdin) == 1) {
    memset(&scratch, 0xFF, sizeof scratch);
    memset(output, 0xFF, sizeof output);
    model_run(input, output, &scratch);
    fwrite(output, sizeof output, 1, stdout);
  }
  return 0;
}
