// Each kind of fault that the processor or the language raises, provoked on purpose: the only way to know
// that its report is right.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging

/// A fault to provoke.
enum Provocation {
  case null, guardPage, writeText, executeData, stackOverflow, divide, overflow
  case lockOrder, lockedSleep, lockedFault, hang

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
    case .lockOrder: Self.withLock(.registry) { Self.withLock(.physicalDomain) {} }
    case .lockedSleep:
      Self.withLock(.registry) {
        let queue = WaitQueue("nothing")
        _ = queue.sleep(queue.ticket(), until: Executive.machine.now, on: Executive.machine)
      }
    case .lockedFault:
      guard let page = Self.pageableAddress() else { return }
      Self.withLock(.registry) { cp_touch(page.rawValue) }
    case .hang:
      _ = cp_interrupts_disable()
      while true { cp_pause(0) }
    }
  }

  private static func withLock(_ rank: LockRank, _ body: () -> Void) {
    let lock = SpinLock(rank)
    let interrupts = lock.lock()
    body()
    lock.unlock(interrupts)
  }

  /// A page that is not there yet.
  private static func pageableAddress() -> VirtualAddress? {
    guard let paging = Assembly.memory?.paging, let object = try? paging.createObject(Name("fault"), .one)
    else {
      return nil
    }
    return try? paging.map(object, count: .one)
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
