// The busy word of a page's record keeps the page from being moved, written out or freed. It is changed by
// compare-and-swap only.
//
//   xbusy       one thread, when there is no other use; the waiters bit may be set
//   sbusy       any number, while the page is not xbusy, wired or held
//   hold, wire  any number, while the page is not xbusy
//
// The waiters bit says that a thread sleeps until the page is no longer xbusy, or has no use at all.

import MemoryPrimitives
import PhysicalMemory

extension BusyWord {
  static var waiters: UInt32 { 1 << 31 }
  static var oneSbusy: UInt32 { 1 << 22 }
  static var oneHold: UInt32 { 1 << 12 }
  static var sbusyLimit: UInt32 { 0xff }
  static var holdLimit: UInt32 { 0x3ff }
  static var wireLimit: UInt32 { 0xfff }

  /// The word without the waiters bit.
  var uses: UInt32 { rawValue & ~Self.waiters }
  var isBusy: Bool { isXbusy || sbusyCount > 0 }
}

extension FrameRecordPointer {
  /// Changes the busy word as `change` says, or not at all when it answers nil. Returns the word before.
  @inline(__always) private func changeBusyWord(_ change: (BusyWord) -> UInt32?) -> BusyWord? {
    while true {
      let before = busyWord
      guard let after = change(before) else { return nil }
      if exchangeBusyWord(before, for: BusyWord(rawValue: after)) { return before }
    }
  }

  /// Makes a page xbusy that has no use.
  func tryXbusy() -> Bool {
    changeBusyWord { $0.uses == 0 ? $0.rawValue | BusyWord.xbusy.rawValue : nil } != nil
  }
  /// Ends xbusy; the caller wakes the waiters.
  func endXbusy() -> Waiters {
    Waiters(changeBusyWord { $0.rawValue & ~(BusyWord.xbusy.rawValue | BusyWord.waiters) })
  }

  /// Makes a page sbusy, for writing it out, unless it is wired, held or xbusy.
  func trySbusy() -> Bool {
    changeBusyWord {
      $0.isXbusy || $0.wires > 0 || $0.holds > 0 || $0.sbusyCount == BusyWord.sbusyLimit
        ? nil : $0.rawValue + BusyWord.oneSbusy
    } != nil
  }
  /// Ends one sbusy; the caller wakes the waiters.
  func endSbusy() -> Waiters {
    Waiters(changeBusyWord { ($0.rawValue - BusyWord.oneSbusy) & ~BusyWord.waiters })
  }
  /// Makes the page xbusy if the caller's sbusy is its only use.
  func trySbusyToXbusy() -> Bool {
    changeBusyWord {
      $0.uses == BusyWord.oneSbusy ? $0.rawValue - BusyWord.oneSbusy | BusyWord.xbusy.rawValue : nil
    } != nil
  }

  enum HoldAnswer { case held, busy, tooMany }
  func tryHold() -> HoldAnswer {
    var answer = HoldAnswer.held
    _ = changeBusyWord {
      answer = $0.isXbusy ? .busy : $0.holds == BusyWord.holdLimit ? .tooMany : .held
      return answer == .held ? $0.rawValue + BusyWord.oneHold : nil
    }
    return answer
  }
  /// Ends one hold; nil when there is none, which is a bug of the caller.
  func endHold() -> Waiters? {
    changeBusyWord { $0.holds == 0 ? nil : ($0.rawValue - BusyWord.oneHold) & ~BusyWord.waiters }
      .map { Waiters($0) }
  }

  enum WireAnswer { case first, again, busy, tooMany }
  func tryWire() -> WireAnswer {
    var answer = WireAnswer.busy
    _ = changeBusyWord {
      if $0.isXbusy {
        answer = .busy
        return nil
      }
      if $0.wires == BusyWord.wireLimit {
        answer = .tooMany
        return nil
      }
      answer = $0.wires == 0 ? .first : .again
      return $0.rawValue + 1
    }
    return answer
  }
  enum UnwireAnswer { case last, more, notWired }
  func endWire() -> UnwireAnswer {
    guard let before = changeBusyWord({ $0.wires == 0 ? nil : $0.rawValue - 1 }) else { return .notWired }
    return before.wires == 1 ? .last : .more
  }

  /// Sets the waiters bit. Returns false, and changes nothing, when `condition` holds already.
  func setWaiters(until condition: (BusyWord) -> Bool) -> Bool {
    changeBusyWord { condition($0) ? nil : $0.rawValue | BusyWord.waiters } != nil
  }
}

/// Whether threads sleep on a page whose use has ended.
enum Waiters {
  case present, absent
  init(_ before: BusyWord?) { self = before?.hasWaiters == true ? .present : .absent }
}

extension PagedMemory {
  /// Wakes the threads that wait for pages, if there are any. The caller holds no lock.
  func wake(_ waiters: Waiters) {
    if waiters == .present { state.waiting.wake(on: machine) }
  }

  /// Releases the object's lock and sleeps until the page is not xbusy. The ticket is taken before the waiters bit is
  /// set, so that no wake in between is lost.
  func waitWhileXbusy(_ record: FrameRecordPointer, _ held: consuming HeldObject) {
    let ticket = state.waiting.ticket()
    let mustWait = record.setWaiters { !$0.isXbusy }
    held.release()
    sleep(ticket, mustWait)
  }

  /// Releases the object's lock and sleeps until the page has no use.
  func waitUntilUnused(_ record: FrameRecordPointer, _ held: consuming HeldObject) {
    let ticket = state.waiting.ticket()
    let mustWait = record.setWaiters { $0.uses == 0 }
    held.release()
    sleep(ticket, mustWait)
  }

  private func sleep(_ ticket: WaitQueue.Ticket, _ mustWait: Bool) {
    guard mustWait else { return }
    counters.waits.count()
    let woken = state.waiting.sleep(ticket, on: machine)
    precondition(woken, "a page is busy, and no thread runs that could end that")
  }
}
