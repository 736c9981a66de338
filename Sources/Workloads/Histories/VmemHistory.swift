// The history of arenas: one with spans of its own, and one that imports from it. Both get their tags from the
// instance's supply.

import KernelMemory
import KernelSpace
import MemoryPrimitives
import Vmem

extension SeededHistory {
  private static var base: UInt64 { 0x4000_0000 }
  private static var spanSize: UInt64 { 256 << 20 }

  mutating func runVmem() {
    let tags = system.space.tags
    let parent = Arena.create(
      ArenaOptions(name: ShortName("history"), quantum: .page, contents: .identifiers), in: extra, tags: tags)
    let child = Arena.create(
      ArenaOptions(
        name: ShortName("history import"), quantum: Alignment(256) ?? .page, contents: .identifiers,
        source: .arena(parent), importUnit: Alignment(64 << 10)),
      in: extra + 4096, tags: tags)
    add(parent, 0)
    repeated({ history in
      if history.grows() {
        history.requestSegment(history.random.oneIn(2) ? parent : child, of: parent)
      } else {
        history.freeSegment(parent, child)
      }
      if history.done % 4096 == 4095 && history.done < 64 << 10 {
        history.add(parent, history.done / 4096 + 1)
      }
      history.fold(parent.size(.allocated).rawValue)
      history.fold(child.size(.free).rawValue)
    }) { _ in parent.checkInvariants() ?? child.checkInvariants() }
    fold(parent.size(.largestFree).rawValue)
    foldSegments(of: parent)
    foldSegments(of: child)
    while used > 0 {
      free(slots[0], parent, child)
      remove(0)
    }
    require(child.size(.total) == .zero, "an arena kept an imported span")
    require(parent.size(.allocated) == .zero, "an arena still has allocated segments")
    examine { _ in parent.checkInvariants() ?? child.checkInvariants() }
    child.destroy()
    parent.destroy()
  }

  /// Adds the arena's `number`th span; every second one touches the one before.
  private mutating func add(_ arena: Arena, _ number: UInt64) {
    let first = Self.base + number * Self.spanSize + (number / 2) * Self.spanSize
    do throws(VmemError) {
      try arena.add(ArenaAddress(first), ArenaSize(Self.spanSize))
      fold(first)
    } catch {
      countRefusal(error.rawValue)
    }
  }

  private mutating func foldSegments(of arena: Arena) {
    arena.walk { segment in
      fold(segment.first.rawValue)
      fold(segment.last.rawValue)
      switch segment.kind {
      case .free: fold(0)
      case .busy: fold(1)
      case .addedSpan: fold(2)
      case .importedSpan: fold(3)
      }
    }
  }

  /// Requests a segment. Its slot has the address, size, 1 for an `xalloc`, and 1 for the child.
  private mutating func requestSegment(_ arena: Arena, of parent: Arena) {
    let isChild = !(arena == parent)
    let unit = arena.quantum.rawValue
    let size = 1 + random.below(unit << random.below(isChild ? 8 : 12))
    let policy: FitPolicy = random.oneIn(4) ? .bestFit : .instantFit
    var constraints = ArenaConstraints()
    let isConstrained = random.oneIn(3)
    if isConstrained {
      if random.oneIn(2) { constraints.alignment = Alignment(unit << random.below(6)) ?? .page }
      if constraints.alignment.rawValue > unit && random.oneIn(2) {
        constraints.phase = ArenaSize(unit * random.below(constraints.alignment.rawValue / unit))
      }
      if random.oneIn(4) { constraints.nocross = Alignment(unit << (4 + random.below(10))) }
      if random.oneIn(4) { constraints.minimum = ArenaAddress(Self.base + random.below(Self.spanSize)) }
      if random.oneIn(4) {
        constraints.maximum = ArenaAddress(constraints.minimum.rawValue + size + random.below(Self.spanSize))
      }
    }
    do throws(VmemError) {
      let address =
        isConstrained
        ? try arena.xalloc(ArenaSize(size), constraints, policy: policy, priority: priority())
        : try arena.alloc(ArenaSize(size), policy: policy, priority: priority())
      checkSegment(address.rawValue, size, constraints)
      fold(address.rawValue)
      record(Slot(a: address.rawValue, b: size, c: isConstrained ? 1 : 0, d: isChild ? 1 : 0))
    } catch {
      countRefusal(error.rawValue)
    }
  }

  private mutating func checkSegment(_ first: UInt64, _ size: UInt64, _ constraints: ArenaConstraints) {
    let last = first + size - 1
    require(
      first >= constraints.minimum.rawValue && last <= constraints.maximum.rawValue,
      "a segment lies out of its range")
    require(
      (first &- constraints.phase.rawValue) & (constraints.alignment.rawValue - 1) == 0,
      "a segment has another alignment or phase")
    if let nocross = constraints.nocross {
      let mask = ~(nocross.rawValue - 1)
      require(first & mask == last & mask, "a segment crosses what it must not")
    }
  }

  private mutating func freeSegment(_ parent: Arena, _ child: Arena) {
    let index = Int(random.below(UInt64(used)))
    free(slots[index], parent, child)
    remove(index)
  }

  private func free(_ slot: Slot, _ parent: Arena, _ child: Arena) {
    let arena = slot.d == 1 ? child : parent
    if slot.c == 1 {
      arena.xfree(ArenaAddress(slot.a), ArenaSize(slot.b))
    } else {
      arena.free(ArenaAddress(slot.a), ArenaSize(slot.b))
    }
  }
}
