// Each kind of fault that the processor or the language raises, provoked on purpose: the only way to know
// that its report is right.

import CPlatform

/// A fault to provoke.
enum Provocation {
  case null, guardPage, writeText, executeData, stackOverflow, divide, overflow

  /// Does it. Returns only where the machine lets it pass.
  @inline(never) func provoke() {
    switch self {
    case .null: cp_touch(16)
    case .guardPage: cp_touch(Image.layout.stack.1.first - 8)
    case .writeText: cp_touch(Image.layout.text.first)
    case .executeData: cp_call(Image.layout.data.first)
    case .stackOverflow: _ = Self.descend(1)
    case .divide: cp_divide_by_zero()
    case .overflow: Self.count(from: UInt8(truncatingIfNeeded: cp_cycles()) | 0xff)
    }
  }

  @inline(never) private static func descend(_ depth: UInt64) -> UInt64 {
    var room = InlineArray<8, UInt64>(repeating: depth)
    cp_keep(&room)
    // The compiler must not see that this never ends.
    return (room[0] == 0 ? 0 : descend(depth &+ 1)) &+ room[Int(depth & 7)]
  }

  @inline(never) private static func count(from start: UInt8) {
    var value = start
    value += 1
    cp_keep(&value)
  }
}
