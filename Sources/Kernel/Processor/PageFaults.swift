// Page faults that are no bug: a thread touched a pageable page that is not present, or wrote to a clean one.
//
// The processor has pushed the state of that thread. The handler resolves the fault on the same stack, with
// interrupts on, as if the thread had called it: it may wait for a device, and fault again. Then the processor
// restarts the instruction. A thread that holds a spin lock, or has interrupts off, can't wait, so a fault on
// pageable memory is a bug there. So it is while the thread has a page window open, for it must not leave the
// processor.
//
// A fault may be spurious: after a protection was relaxed, the processor may still use the translation that it has
// cached (SDM vol. 3, 4.10.4.3). The fault invalidates that translation. So the handler reads the tables first, and
// when they permit the access, the instruction is restarted, whatever the thread holds.
//
// `cp_try_load` and `cp_try_store` make an access that may fail: when the page can't be brought in, they answer so.
// Any other access stops the machine, because the thread cannot continue without the page.

import CPlatform
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging

enum PageFaults {
  /// The memory whose pageable pages are brought in. Nil until it is up: before, each fault is a bug.
  nonisolated(unsafe) private static var memory: MemorySystem?

  /// Resolves faults on the pageable memory of `memory` from now on. Called once, at boot.
  static func start(_ memory: MemorySystem) { self.memory = memory }

  /// Resolves the fault that `frame` describes. When it can't, it lets an access that may fail answer so, or reports
  /// the fault and stops the machine. Called with interrupts off.
  static func handle(_ frame: UnsafeMutablePointer<cp_trap_frame>) {
    // Read first, because the next fault overwrites it.
    let address = cp_read_cr2()
    let cause = PageFaultCause(rawValue: frame.pointee.error)
    var answer = cp_fault_answer.notMine
    // Pageable memory is data, and its tables are sound.
    if let memory, cause.isDataAccess {
      let address = VirtualAddress(address)
      let access = cause.isWrite ? AccessKind.write : .read
      let interrupts = frame.pointee.rflags & Flags.interrupts
      let mayResolve = interrupts != 0 && holdsNoSpinLock() && cp_pins() == 0
      // No processor caches that a page is not present (SDM vol. 3, 4.10.2, 4.10.3): only a protection fault may come
      // from a stale entry. Where the fault must not be resolved, the tables show whether the page is pageable.
      var verdict: FaultVerdict?
      if cause.isProtection || !mayResolve {
        verdict = memory.pageTables.verdict(onFault: address, access)
        if verdict == .permitted { return }
      }
      if mayResolve {
        cp_interrupts_enable()
        answer = resolve(memory.paging, address, access)
        _ = cp_interrupts_disable()
        if answer.outcome == .resolved { return }
      } else if verdict == .pageable {
        forbid(frame, address.rawValue, interrupts)
      }
    }
    if !recover(frame) { fail(frame, address, answer) }
  }

  /// Makes a pageable address accessible, or answers why that failed. It may wait, and fault again.
  private static func resolve(
    _ paging: PagedMemory, _ address: VirtualAddress, _ access: AccessKind
  ) -> cp_fault_answer {
    do throws(PagingError) {
      try paging.fault(address, access)
      return .resolved
    } catch {
      Thread.current.record.pagingError = error.rawValue
      return error == .notPageable ? .notMine : .failed(error.description)
    }
  }

  // Out of line: a line of text takes space on the stack, which a resolved fault does not need.

  @inline(never) private static func forbid(
    _ frame: UnsafeMutablePointer<cp_trap_frame>, _ address: UInt64, _ interrupts: UInt64
  ) -> Never {
    // With a spin lock held, interrupts are off too.
    guard holdsNoSpinLock() else {
      Exception.report(frame, address, forbidden: "a page fault with a spin lock held")
    }
    if interrupts == 0 {
      Exception.report(frame, address, forbidden: "a page fault with interrupts off")
    }
    Exception.report(frame, address, forbidden: "a page fault with a page window open")
  }

  @inline(never) private static func fail(
    _ frame: UnsafeMutablePointer<cp_trap_frame>, _ address: UInt64, _ answer: cp_fault_answer
  ) -> Never {
    switch answer.outcome {
    case .failed: Exception.report(frame, address, answer.description)
    // No pageable page lies there, or it was pageable a moment ago.
    case .not_mine, .resolved: Exception.report(frame, address, nil)
    }
  }

  /// Lets the access answer failure if it is one that may fail. False if it is not.
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
  /// The page is present, but its protection forbids the access.
  var isProtection: Bool { rawValue & 1 << 0 != 0 }
  var isWrite: Bool { rawValue & 1 << 1 != 0 }
  /// An entry has bits set that must not be.
  var isCorrupt: Bool { rawValue & 1 << 3 != 0 }
  var isFetch: Bool { rawValue & 1 << 4 != 0 }
  /// Neither a corrupt entry, nor a fetch, nor a right that no entry of ours gives or removes (protection keys,
  /// shadow stacks, enclaves).
  var isDataAccess: Bool { rawValue & ~0b111 == 0 }
}

extension cp_fault_answer {
  static var resolved: Self { Self(outcome: .resolved, count: 0, text: nil) }
  static var notMine: Self { Self(outcome: .not_mine, count: 0, text: nil) }

  /// The answer that the page can't be brought in, with the reason in a few words.
  static func failed(_ words: StaticString) -> Self {
    Self(outcome: .failed, count: UInt32(words.utf8CodeUnitCount), text: words.utf8Start)
  }

  fileprivate var description: Line {
    var line = Line()
    line.append(bytes: UnsafeBufferPointer(start: text, count: Int(count)))
    return line
  }
}
