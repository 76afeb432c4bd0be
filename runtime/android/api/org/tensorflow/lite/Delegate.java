package org.tensorflow.lite;

import java.io.Closeable;

/** LiteRT 1's interface, declared again to compile BinaryVitDelegate.kt; the .aar leaves it out. */
public interface Delegate extends Closeable {
  long getNativeHandle();

  @Override
  default void close() {}
}
