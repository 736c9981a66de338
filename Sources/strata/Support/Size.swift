// Sizes as a person types them: `256M`, `64MiB`, `1G`, `4096`, all powers of 1024.

import ArgumentParser
import MemoryPrimitives

/// A number of bytes from the command line.
struct Size: ExpressibleByArgument {
  let bytes: ByteCount

  init?(argument: String) {
    var digits = Substring(argument.replacing("_", with: "").replacing(",", with: "").lowercased())
    for ending in ["ib", "b"] where digits.hasSuffix(ending) {
      digits = digits.dropLast(ending.count)
      break
    }
    var shift: UInt64 = 0
    if let letter = digits.last, let power = Array("kmgt").firstIndex(of: letter) {
      shift = UInt64(power + 1) * 10
      digits = digits.dropLast()
    }
    guard let number = UInt64(digits), number > 0, number.leadingZeroBitCount > shift else { return nil }
    bytes = ByteCount(number << shift)
  }

  var defaultValueDescription: String { "\(bytes.rawValue >> 20)M" }
}
