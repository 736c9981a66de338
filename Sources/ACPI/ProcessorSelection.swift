// The processors that a kernel starts: those of the MADT that are enabled, can be reached, and fit.
//
// The processor that the machine booted on has index 0, at any position in the table and with any state there. The
// others follow in the order of the table. The kernel makes its per-processor state for `count` processors and
// starts the others of this same list, so every index has its state.
//
// A table that does not name the boot processor as enabled is no description of this machine (5.2.12.1 asks for its
// entry first): none of it is used. Of a table with a malformed entry, the processors before that entry are used, if
// the boot processor is among them.

/// A choice of at most `capacity` processors, the boot processor included.
package struct ProcessorSelection<let capacity: Int> {
  /// The processor that runs, and has index 0.
  package let boot: APICIdentity
  /// The flaw by which there may be processors that are not in this list.
  package private(set) var flaw: ACPIError?
  /// Enabled processors that messages can't be sent to.
  package private(set) var unreachableCount = 0
  /// Enabled processors beyond `capacity`.
  package private(set) var surplusCount = 0
  private var others: InlineArray<capacity, APICIdentity>
  private var otherCount = 0

  /// Makes a list of the boot processor alone, on a machine whose tables have this flaw.
  package init(only boot: APICIdentity, because flaw: ACPIError) {
    precondition(capacity > 0, "the boot processor has no place")
    self.boot = boot
    self.flaw = flaw
    others = .init(repeating: boot)
  }

  /// Makes a list of the processors that `table` names, as far as `addressing` reaches them.
  package init(_ table: MADT, boot: APICIdentity, reachedBy addressing: APICIdentity.Addressing) {
    self.init(only: boot, because: .noBootProcessor)
    var namesBoot = false
    var listed = self
    table.forEachProcessor { processor in
      guard processor.state == .enabled else { return }
      if processor.identity == boot { namesBoot = true } else { listed.add(processor.identity, addressing) }
    }
    guard namesBoot else { return }
    self = listed
    flaw = table.flaw
  }

  private mutating func add(_ identity: APICIdentity, _ addressing: APICIdentity.Addressing) {
    if addressing == .xAPIC && identity.addressing == .x2APIC {
      unreachableCount += 1
    } else if count == capacity {
      surplusCount += 1
    } else {
      others[otherCount] = identity
      otherCount += 1
    }
  }

  /// Processors of the list: the boot processor and those that are to be started.
  package var count: Int { 1 + otherCount }

  /// The processor with index `index`, from 0 to `count - 1`.
  package subscript(index: Int) -> APICIdentity {
    precondition(index >= 0 && index < count, "a processor that is not in the list")
    return index == 0 ? boot : others[index - 1]
  }
}
