// Page faults that are no bug: a thread touched a pageable page that is not there, or wrote to one that is clean.
//
// The processor has pushed the state of that thread. The handler resolves the fault on the same stack, with interrupts
// on, as if the thread had called: it may wait for a device, and fault again while it does. Then the processor begins
// the instruction anew. A thread that holds a spin lock, or has interrupts off, can't wait: there a fault on pageable
// memory is a bug.
//
// A fault may be spurious: where a right was raised, the processor may still use the translation that it remembers
// from before (SDM vol. 3, 4.10.4.3). The fault makes it forget that, so the handler looks at the tables first, and
// when they permit the access, the instruction is begun anew, whatever the thread holds.
//
// An access that may fail is made by `cp_try_load` or `cp_try_store`: when the page can't be had, the
// thread goes on where those answer so. Any other access ends the machine, as there is nothing that the
// thread could go on with.

import CPlatform
import MemoryPrimitives
import PageTables

enum PageFaults {
  /// What the tables say of an access, a `FaultVerdict`. Called with interrupts off; takes no lock and touches nothing
  /// pageable.
  typealias Look = @convention(c) (UnsafeMutableRawPointer?, UInt64, cp_access) -> FaultVerdict.RawValue
  /// Makes an address that is pageable accessible, or says why it can't be. Called with interrupts on and
  /// no lock held; it may wait, and is called again while it does.
  typealias Resolve = @convention(c) (UnsafeMutableRawPointer?, UInt64, cp_access) -> cp_fault_answer

  private struct Handler {
    let context: UnsafeMutableRawPointer?
    let look: Look
    let resolve: Resolve
  }

  /// What resolves faults. Nil until there is paging: before, each fault is a bug.
  nonisolated(unsafe) private static var handler: Handler?

  /// From now on faults are resolved. Once, at boot.
  static func install(_ context: UnsafeMutableRawPointer?, look: @escaping Look, resolve: @escaping Resolve) {
    handler = Handler(context: context, look: look, resolve: resolve)
  }

  /// Resolves the fault that `frame` tells of, or makes the access that may fail do so, or tells of it and
  /// stops. Called with interrupts off.
  static func handle(_ frame: UnsafeMutablePointer<cp_trap_frame>) {
    // The next fault overwrites it.
    let address = cp_read_cr2()
    let cause = PageFaultCause(rawValue: frame.pointee.error)
    var answer = cp_fault_answer.notMine
    // Pageable memory is data, and its tables are sound.
    if let handler, cause.isDataAccess {
      let access = cause.isWrite ? cp_access.write : .read
      let mayResolve = frame.pointee.rflags & Flags.interrupts != 0 && holdsNoSpinLock()
      // No processor remembers that a page is not present (SDM vol. 3, 4.10.2, 4.10.3): only a fault of protection may
      // come from a stale entry. Where the fault may not be resolved the tables say what it is.
      var verdict: FaultVerdict?
      if cause.isProtection || !mayResolve {
        verdict = FaultVerdict(rawValue: handler.look(handler.context, address, access))
        if verdict == .permitted { return }
      }
      if mayResolve {
        cp_interrupts_enable()
        answer = handler.resolve(handler.context, address, access)
        _ = cp_interrupts_disable()
        if answer.outcome == .resolved { return }
      } else if verdict == .pageable {
        forbid(frame, address)
      }
    }
    if !recover(frame) { fail(frame, address, answer) }
  }

  // Out of line: a line of text takes room on the stack, which a fault that is resolved need not.

  @inline(never) private static func forbid(
    _ frame: UnsafeMutablePointer<cp_trap_frame>, _ address: UInt64
  ) -> Never {
    // With a spin lock held, interrupts are off too.
    if holdsNoSpinLock() {
      Exception.report(frame, address, forbidden: "a page fault with interrupts off")
    }
    Exception.report(frame, address, forbidden: "a page fault with a spin lock held")
  }

  @inline(never) private static func fail(
    _ frame: UnsafeMutablePointer<cp_trap_frame>, _ address: UInt64, _ answer: cp_fault_answer
  ) -> Never {
    switch answer.outcome {
    case .failed: Exception.report(frame, address, answer.description)
    // No page of anybody's; or it was pageable a moment ago.
    case .not_mine, .resolved: Exception.report(frame, address, nil)
    }
  }

  /// Whether the access was one that may fail: then it does.
  static func recover(_ frame: UnsafeMutablePointer<cp_trap_frame>) -> Bool {
    let landing = cp_recovery(frame.pointee.rip)
    guard landing != 0 else { return false }
    frame.pointee.rip = landing
    return true
  }

  private enum Flags {
    static var interrupts: UInt64 { 1 << 9 }
  }
}

/// The error code of a page fault (Intel SDM vol. 3A, 4.7).
struct PageFaultCause {
  let rawValue: UInt64
  /// The page is there, but not for this.
  var isProtection: Bool { rawValue & 1 << 0 != 0 }
  var isWrite: Bool { rawValue & 1 << 1 != 0 }
  /// An entry has bits set that must not be.
  var isCorrupt: Bool { rawValue & 1 << 3 != 0 }
  var isFetch: Bool { rawValue & 1 << 4 != 0 }
  /// Neither an entry with bits set that must not be, nor a fetch, nor a right that no entry of ours gives or takes
  /// (protection keys, shadow stacks, enclaves).
  var isDataAccess: Bool { rawValue & ~0b111 == 0 }
}

extension cp_fault_answer {
  static var resolved: Self { Self(outcome: .resolved, count: 0, text: nil) }
  static var notMine: Self { Self(outcome: .not_mine, count: 0, text: nil) }

  /// The page can't be had, for a reason in a few words.
  static func failed(_ words: StaticString) -> Self {
    Self(outcome: .failed, count: UInt32(words.utf8CodeUnitCount), text: words.utf8Start)
  }

  fileprivate var description: Line {
    var line = Line()
    line.append(bytes: UnsafeBufferPointer(start: text, count: Int(count)))
    return line
  }
}
