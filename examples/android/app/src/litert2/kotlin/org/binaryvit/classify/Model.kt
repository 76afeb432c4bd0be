package org.binaryvit.classify

import org.binaryvit.runtime.LiteRt2Model

/** A model with one input and one output of float32, which LiteRT 2 compiles and runs. */
typealias Model = LiteRt2Model
