// The check of all invariants in ZspageAllocator.swift. Takes as long as there are slots and frames, and needs no
// memory.

import MemoryPrimitives
import PhysicalMemory

extension ZspageAllocator {
  /// Checks every invariant: nil when all hold, else the broken one, by its number. Nothing else may use the
  /// instance.
  public func checkInvariants() -> StaticString? { lists.quiet.pointee.checkInvariants() }
}

extension ZspageLists {
  fileprivate func checkInvariants() -> StaticString? {
    if !cells.countsAreRight() { return "ZS-5: cells are miscounted" }
    if !zspages.countsAreRight() { return "ZS-5: descriptors of zspages are miscounted" }
    var (found, slots, frames, huge, partial) = (0, 0, 0, 0, 0)
    for place in 0..<zspages.indexEnd {
      guard let zspage = existingZspage(place) else { continue }
      if let broken = check(zspage, place) { return broken }
      found += 1
      slots += zspage.used
      frames += zspage.heldPages
      if shape(of: zspage).isHuge { huge += 1 }
      if zspage.group != .full { partial += 1 }
    }
    if found != zspages.count { return "ZS-5: descriptors of zspages are miscounted" }
    if slots != cells.count { return "ZS-1: there are not as many occupied slots as cells" }
    let counters = self.counters
    if counters.pointee.objects.value != UInt64(slots) || counters.pointee.huge.value != UInt64(huge) {
      return "ZS-5: objects are miscounted"
    }
    if counters.pointee.dataFrames.value != UInt64(frames) { return "ZS-5: frames of zspages are miscounted" }
    if counters.pointee.tableFrames.value != UInt64(cells.frames + zspages.frames) {
      return "ZS-5: frames of tables are miscounted"
    }
    if physical.count(.zspage).rawValue != UInt64(frames) {
      return "ZS-3: a frame with role zspage belongs to no zspage"
    }
    return checkLists(partial) ?? checkCounts()
  }

  /// Counts of classes against those of all zspages.
  private func checkCounts() -> StaticString? {
    for number in 0..<classes.count {
      var found = ClassCounts()
      for place in 0..<zspages.indexEnd {
        guard let zspage = existingZspage(place), zspage.sizeClass == number else { continue }
        found.objects += UInt32(zspage.used)
        found.frames += UInt32(zspage.heldPages)
        found.zspages[Int(zspage.group.rawValue)] += 1
      }
      let counted = counts[number]
      if found.objects != counted.objects || found.frames != counted.frames {
        return "ZS-5: objects or frames of a class are miscounted"
      }
      for group in 0...FullnessGroup.listCount where found.zspages[group] != counted.zspages[group] {
        return "ZS-5: zspages of a group are miscounted"
      }
    }
    return nil
  }

  /// The zspage with that number, if there is one.
  func existingZspage(_ place: UInt32) -> Zspage? {
    guard let raw = zspages[place] else { return nil }
    let zspage = Zspage(raw: raw)
    return zspage.sizeClass == nil ? nil : zspage
  }

  private func check(_ zspage: Zspage, _ place: UInt32) -> StaticString? {
    let shape = shape(of: zspage)
    if !zspage.isQuiet { return "ZS-6: a zspage is pinned" }
    if zspage.used == 0 { return "ZS-2: a zspage has no object" }
    if zspage.occupied.count != zspage.used || zspage.occupied.highest >= Int(shape.slots) {
      return "ZS-1: occupied slots of a zspage are miscounted"
    }
    var held = 0
    for page in 0..<Int(shape.pages) {
      let frame = zspage.frame(page)
      let isTouched = !zspage.occupied.isDisjoint(with: shape.slots(touching: page))
      if isTouched != (frame != .none) {
        return "ZS-2: a zspage has a frame that no object touches, or lacks one"
      }
      guard frame != .none else { continue }
      held += 1
      guard let record = physical.record(frame), record.role == .zspage, record.busyWord == .wiredOnce,
        record.owner == place, record.aux == UInt32(page)
      else { return "ZS-3: the record of a zspage's frame does not name it" }
    }
    if held != zspage.heldPages { return "ZS-5: frames of a zspage are miscounted" }
    for slot in 0..<Int(shape.slots) where zspage.occupied.contains(slot) {
      guard let cell = cell(owner(of: slot, in: zspage)), let at = cell.place, Cell.zspage(at) == place,
        Cell.slot(at) == slot
      else { return "ZS-1: an occupied slot does not name the cell that names it" }
    }
    if zspage.group != FullnessGroup(used: zspage.used, of: Int(shape.slots)) {
      return "ZS-4: a zspage is in the wrong group"
    }
    return nil
  }

  private func checkLists(_ partial: Int) -> StaticString? {
    var listed = 0
    for number in 0..<classes.count {
      for group in 0..<FullnessGroup.listCount {
        var (at, before) = (first(number, group), Self.none)
        while at != Self.none {
          guard let zspage = existingZspage(at), zspage.sizeClass == number,
            Int(zspage.group.rawValue) == group,
            zspage.previous == before, listed < partial
          else { return "ZS-4: a zspage is in a list that is not its own" }
          listed += 1
          (before, at) = (at, zspage.next)
        }
      }
    }
    return listed == partial ? nil : "ZS-4: a zspage with a free slot is in no list"
  }
}
