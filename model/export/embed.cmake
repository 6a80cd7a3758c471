# The Python files that exported directories carry, compiled into the program: ${SATUNE_EXPORT_PYTHON} is the
# generated source. Editing a .py configures again.
foreach(stem configuration_sa_llama modeling_sa_llama)
  set(python ${CMAKE_CURRENT_LIST_DIR}/${stem}.py)
  file(READ ${python} ${stem}_py)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${python})
endforeach()
set(SATUNE_EXPORT_PYTHON ${CMAKE_CURRENT_BINARY_DIR}/export_python.cpp)
configure_file(${CMAKE_CURRENT_LIST_DIR}/export_python.cpp.in ${SATUNE_EXPORT_PYTHON} @ONLY)
