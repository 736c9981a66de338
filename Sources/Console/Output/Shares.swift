// Shares and decimal places in a line of text.

import MemoryPrimitives

extension Line {
  /// A figure in parts of `scale`, a power of ten.
  mutating func append(decimal value: UInt64, scale: UInt64) {
    append(decimal: value / scale)
    append(".")
    var place = scale / 10
    while place > 0 {
      append(decimal: value % scale / place % 10)
      place /= 10
    }
  }

  /// A share in whole percent, `-` of nothing.
  mutating func append(roughShare part: UInt64, of whole: UInt64) {
    guard whole > 0 else {
      append("-")
      return
    }
    append(decimal: (part * 100 + whole / 2) / whole)
    append(" %")
  }

  /// A share in percent: one place below 100, `100 %` when it is all, `-` of nothing.
  mutating func append(share part: UInt64, of whole: UInt64) {
    guard whole > 0 else {
      append("-")
      return
    }
    // Beyond 2^53 the last bits don't show in a thousandth.
    let shift = UInt64(max(0, 11 - max(part, whole).leadingZeroBitCount))
    let (part, whole) = (part >> shift, max(1, whole >> shift))
    let thousandths = (part * 1000 + whole / 2) / whole
    if part == whole {
      append("100 %")
    } else {
      append(decimal: thousandths / 10)
      append(".")
      append(decimal: thousandths % 10)
      append(" %")
    }
  }
}
